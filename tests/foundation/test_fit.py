"""Order of data, resume, learning rate, non-finite steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from foundation.data_order import DataOrder
from foundation.ema import WeightAverage
from foundation.errors import CheckpointError, TrainingError
from foundation.fit import FitConfig, fit
from foundation.learner import Learner
from foundation.log import MetricsLog, read_metrics
from foundation.optim import OptimConfig, adamw, learning_rate, no_decay


class Numbers:
    def __len__(self) -> int:
        return 50

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(np.stack([indices, epochs], 1)).float() / 50
        return {"x": x, "indices": torch.from_numpy(indices)}


class Regression:
    """A task with dropout, so that its random numbers matter."""

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        options: dict[str, Any] = {"average_decay": 0.9, "precision": "float32", "accelerator": Accelerator(cpu=True)}
        self.learner = Learner(model, OptimConfig(learning_rate=0.01), 20, **options)
        self.stop_at, self.seen = stop_at, []

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, Any]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(batch["indices"].tolist())
        self.learner.wrapped.train()
        loss = F.mse_loss(self.learner.wrapped(batch["x"])[:, 0], batch["x"].sum(1))
        update = self.learner.apply(loss, step)
        self.learner.average.update(self.learner.model, step)
        return update.metrics

    def evaluate(self) -> dict[str, float]:
        return {"score": float(next(self.learner.average.model.parameters()).sum())}

    def exported(self) -> nn.Module:
        return self.learner.average.model

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)


CONFIG = FitConfig(steps=20, batch_size=7, evaluate_every=5, checkpoint_every=4, log_every=1)


def train(folder: Path, task: Regression, identity: str = "same") -> Regression:
    log = MetricsLog(folder / "metrics.jsonl", "toy")
    options: dict[str, Any] = {
        "seed": 3,
        "checkpoints": folder / "checkpoints",
        "log": log,
        "identity": {"recipe": identity},
    }
    fit(task, Numbers(), CONFIG, Accelerator(cpu=True), **options)
    return task


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_stopped_run_ends_with_the_same_weights_and_log(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(tmp_path / "a", Regression())
    for stop_at in (1, 6, 7, 13, 19):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "b", Regression(stop_at))
    resumed = train(tmp_path / "b", Regression())
    for one, other in zip(whole.exported().parameters(), resumed.exported().parameters(), strict=True):
        assert torch.equal(one, other)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert resumed.seen == whole.seen[16:], "it continued from the last checkpoint, not from the beginning"


def test_evaluation_happens_before_the_first_step_and_after_the_last(tmp_path: Path) -> None:
    train(tmp_path, Regression())
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl", kind="held_out")]
    assert steps == [0, 5, 10, 15, 20]


def test_another_recipe_s_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tmp_path, Regression(), identity="one")
    with pytest.raises(CheckpointError, match="recipe changed since"):
        train(tmp_path, Regression(), identity="two")


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    order = DataOrder(50, seed=1)
    indices, epochs = order.at(np.arange(150))
    for epoch in range(3):
        assert sorted(indices[epochs == epoch]) == list(range(50))
    assert not np.array_equal(indices[:50], indices[50:100])
    assert not np.array_equal(indices[:50], DataOrder(50, seed=2).at(np.arange(50))[0])


def test_a_position_can_be_read_on_its_own() -> None:
    order = DataOrder(50, seed=1)
    whole = order.at(np.arange(120))[0]
    parts = np.concatenate([DataOrder(50, seed=1).at(np.arange(start, start + 40))[0] for start in (0, 40, 80)])
    assert np.array_equal(whole, parts)


def test_the_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    config = OptimConfig(learning_rate=1.0, warmup_steps=10, min_factor=0.1)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_decay_spares_vectors_and_tagged_matrices() -> None:
    module = nn.Module()
    module.kernel, module.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    module.table = no_decay(nn.Parameter(torch.ones(2, 2)))
    decayed, exempt = adamw(module, OptimConfig(weight_decay=0.5)).param_groups
    assert [id(p) for p in decayed["params"]] == [id(module.kernel)]
    assert decayed["weight_decay"] == 0.5 and exempt["weight_decay"] == 0.0


def test_a_step_that_is_not_finite_changes_nothing_and_ten_stop_the_run() -> None:
    task = Regression()
    before = [p.clone() for p in task.learner.model.parameters()]
    for step in range(9):
        update = task.learner.apply(task.learner.model(torch.full((1, 2), torch.nan)).sum(), step)
        assert not update.taken
    for one, other in zip(before, task.learner.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(TrainingError, match="10 steps in a row"):
        task.learner.apply(task.learner.model(torch.full((1, 2), torch.nan)).sum(), 9)


def test_the_average_follows_the_weights_and_copies_buffers() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
        model.running_mean.fill_(7.0)
    average.update(model, step=100)
    assert torch.allclose(average.model.weight, torch.full((2,), 1.5))
    assert torch.equal(average.model.running_mean, torch.full((2,), 7.0))
    assert not average.model.training


def test_metrics_survive_a_torn_line_and_values_that_are_not_finite(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", "toy")
    log.write("train", 0, {"loss": float("nan")})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "toy", "ki')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"stage": "toy", "kind": "train", "step": 0, "loss": None}]
    log.forget_from(0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
