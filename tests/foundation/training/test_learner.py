"""A model, its optimizer and its average, on one process and on several."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from torch import nn

from foundation.errors import TrainingError
from foundation.training.config import OptimConfig
from foundation.training.learner import Learner, WeightAverage


def learner(model: nn.Module, average_decay: float = 0.9, **options: Any) -> Learner:
    optim = OptimConfig(learning_rate=0.01, warmup_steps=3, schedule="wsd")
    accelerator = Accelerator(cpu=True)
    return Learner(
        model, optim, 12, average_decay=average_decay, precision="float32", accelerator=accelerator, **options
    )


def test_a_step_that_is_not_finite_changes_nothing_and_ten_stop_the_run() -> None:
    one = learner(nn.Linear(2, 1))
    before = [p.clone() for p in one.model.parameters()]
    for step in range(9):
        assert not one.apply(one.wrapped(torch.full((1, 2), torch.nan)).sum(), step).taken
    assert all(torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True))
    with pytest.raises(TrainingError, match="10 steps in a row"):
        one.apply(one.wrapped(torch.full((1, 2), torch.nan)).sum(), 9)


def test_a_clip_norm_of_null_takes_the_gradient_as_it_is() -> None:
    weights = {}
    for clip_norm in (None, 1e30, 0.01):
        torch.manual_seed(0)
        optim = OptimConfig(warmup_steps=0, clip_norm=clip_norm)
        one = Learner(
            nn.Linear(2, 1), optim, 9, average_decay=0.0, precision="float32", accelerator=Accelerator(cpu=True)
        )
        for step in range(5):
            assert one.apply(one.wrapped(torch.full((1, 2), 10.0**step)).square().sum(), step).taken
        weights[clip_norm] = one.model.weight.detach()
    assert torch.equal(weights[None], weights[1e30]) and not torch.equal(weights[None], weights[0.01])


def test_an_objective_is_called_and_the_model_is_saved() -> None:
    class Objective(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).square().mean()

    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    one = learner(model, objective=Objective(model))
    losses = [float(one.apply(one.wrapped(torch.ones(4, 2)), step).metrics["loss"]) for step in range(12)]
    assert losses[-1] < losses[0]
    assert one.state_dict()["model"].keys() == one.state_dict()["average"].keys() == {"weight", "bias"}


def test_state_is_restored_to_the_bit() -> None:
    torch.manual_seed(0)
    first, second = learner(nn.Linear(3, 2)), learner(nn.Linear(3, 2))
    x = torch.randn(5, 3)
    for step in range(4):
        first.apply(first.wrapped(x).square().mean(), step)
        first.average.update(first.model, step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for one in (first, second):
        one.apply(one.wrapped(x).square().mean(), 4)
        one.average.update(one.model, 4)
    for a, b in ((first.model, second.model), (first.average.model, second.average.model)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


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


def test_without_a_decay_the_average_is_the_weights_in_the_same_memory() -> None:
    model = nn.BatchNorm1d(2).train()
    average = WeightAverage(model, 0.0)
    with torch.no_grad():
        model.weight.add_(1.0)
        model.running_mean.fill_(7.0)
    average.update(model, step=0)
    for name, value in average.exported().state_dict().items():
        assert value.data_ptr() == model.state_dict()[name].data_ptr()
    assert model.training and not average.exported().training
    assert average.state_dict() == {}
    average.load_state_dict({"weight": torch.zeros(2)})  # as older checkpoints hold it
    assert torch.equal(model.weight, torch.full((2,), 2.0))


def _rates(folder: Path, n_processes: int) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # else a fork keeps its parent's single process
    torch.set_num_threads(1)  # nor can a fork use its parent's OpenMP threads
    torch.manual_seed(0)
    one = learner(nn.Linear(2, 1))
    assert one.accelerator.num_processes == n_processes
    share = torch.linspace(0, 1, 8).reshape(4, 2).chunk(n_processes)[one.accelerator.process_index]
    metrics = [one.apply(one.wrapped(share).square().mean(), step).metrics for step in range(12)]
    if one.accelerator.is_main_process:
        norms = [float(each["gradient_norm"]) for each in metrics]
        found = {"rates": [each["learning_rate"] for each in metrics], "norms": norms}
        (folder / f"{n_processes}.json").write_text(json.dumps(found))


def test_learning_rates_and_gradients_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    for n_processes in (2, 4):
        debug_launcher(_rates, (tmp_path, n_processes), num_processes=n_processes)
    AcceleratorState._reset_state(reset_partial_state=True)
    _rates(tmp_path, 1)
    one, two, four = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2, 4))
    assert one["rates"] == two["rates"] == four["rates"] and len(set(one["rates"])) == 5
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)
    assert four["norms"] == pytest.approx(one["norms"], rel=1e-5)
