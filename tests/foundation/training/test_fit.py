"""The training loop: order of data, cadence, resume, what it logs and what it refuses to save."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from foundation.errors import CheckpointError, TrainingError
from foundation.randomness import DataOrder
from foundation.training.clock import TIMINGS
from foundation.training.config import FitConfig, OptimConfig
from foundation.training.fit import fit
from foundation.training.learner import Learner
from foundation.training.log import MetricsLog, read_metrics


class Numbers:
    def __len__(self) -> int:
        return 50

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(np.stack([indices, epochs], 1)).float() / 50
        return {"x": x, "indices": torch.from_numpy(indices)}


NUMBERS = Numbers()


class Regression:
    """A task with dropout, so that its random numbers matter."""

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        options: dict[str, Any] = {"average_decay": 0.9, "precision": "float32", "accelerator": Accelerator(cpu=True)}
        self.learner = Learner(model, OptimConfig(learning_rate=0.01), 20, **options)
        self.stop_at, self.seen, self.positions = stop_at, [], []

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, Any]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(batch["indices"].tolist())
        self.positions.append(batch["positions"].numpy())
        self.learner.wrapped.train()
        loss = F.mse_loss(self.learner.wrapped(batch["x"])[:, 0], batch["x"].sum(1))
        update = self.learner.apply(loss, step)
        self.learner.average.update(self.learner.model, step)
        return update.metrics

    def evaluate(self) -> dict[str, float]:
        return {"score": float(next(self.learner.average.model.parameters()).sum())}

    def settle(self, metrics: Mapping[str, float]) -> None:
        self.learner.settle(metrics["skipped_steps"])

    def headline(self, metrics: Mapping[str, float]) -> dict[str, str]:
        return {}

    def is_sound(self, metrics: Mapping[str, float]) -> bool:
        return abs(metrics["score"]) < 1e6

    def exported(self) -> nn.Module:
        return self.learner.average.model

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)


CONFIG = FitConfig(steps=20, batch_size=7, evaluate_every=5, checkpoint_every=4, log_every=1)


def train(
    folder: Path,
    task: Regression,
    identity: str = "same",
    examples: Numbers = NUMBERS,
    workers: int = 0,
    **changes: int,
) -> Regression:
    log = MetricsLog(folder / "metrics.jsonl", "toy")
    options: dict[str, Any] = {
        "seed": 3,
        "checkpoints": folder / "checkpoints",
        "log": log,
        "identity": lambda steps: {"recipe": identity},
        "workers": workers,
    }
    fit(task, examples, dataclasses.replace(CONFIG, **changes), Accelerator(cpu=True), **options)
    return task


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def test_a_stopped_run_ends_with_the_same_weights_and_log(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(tmp_path / "a", Regression())
    for stop_at in (1, 6, 7, 13, 19):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "b", Regression(stop_at), workers=stop_at % 3)
    resumed = train(tmp_path / "b", Regression(), workers=2)
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


def test_the_log_says_how_long_a_step_waits_for_its_data(tmp_path: Path) -> None:
    class Slow(Numbers):
        def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
            time.sleep(0.02)
            return super().batch(indices, epochs)

    train(tmp_path, Regression(), examples=Slow())
    waits = [row["loading_seconds"] for row in read_metrics(tmp_path / "metrics.jsonl", kind="train")]
    assert len(waits) == 20 and np.median(waits) > 0.005


def test_a_batch_knows_its_places_in_the_sequence_of_samples(tmp_path: Path) -> None:
    task = train(tmp_path, Regression())
    assert np.concatenate(task.positions).tolist() == list(range(140))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Broken(Regression):
        def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, Any]:
            metrics = super().train_step(batch, step)
            if step == 11:
                next(iter(self.learner.optimizer.state.values()))["exp_avg"][0] = torch.inf
            return metrics

    with pytest.raises(TrainingError, match=r"no longer finite \(optimizer/state/0/exp_avg"):
        train(tmp_path, Broken())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]


def test_the_last_sound_checkpoint_stays_and_is_named(tmp_path: Path) -> None:
    class Climbing(Regression):
        """Evaluates to finite nonsense after step 4, and is not finite after step 16."""

        def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, Any]:
            metrics = super().train_step(batch, step)
            with torch.no_grad():
                next(self.learner.average.model.parameters()).fill_(
                    1.0 if step < 4 else 1e20 if step < 16 else torch.inf
                )
            return metrics

    for attempt in range(2):  # the same again, from the last checkpoint
        with pytest.raises(TrainingError, match="no longer finite") as caught:
            train(tmp_path, Climbing(), evaluate_every=4, checkpoint_every=2)
        said = str(caught.value)
        assert "the last sound checkpoint is of step 4" in said, said
        assert "--toy.training.optim.learning_rate 0.001" in said and "remove" not in said and "delete" not in said
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["step-00000004", "step-00000014", "step-00000016"], attempt


def test_metrics_survive_a_torn_line_and_values_that_are_not_finite(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", "toy")
    log.write("train", 0, {"loss": float("nan")})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "toy", "ki')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"stage": "toy", "kind": "train", "step": 0, "loss": None}]
    log.forget_from(0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
