"""Trainings of one length that go on with another."""

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.tiny_prior import STEPS, fit_config, rows, tiny_task, train

from foundation.errors import CheckpointError
from foundation.training.checkpoints import checkpoint_lengths
from foundation.training.config import OptimConfig
from foundation.training.lengths import Rates, Schedule

WSD = OptimConfig(learning_rate=3e-3, warmup_steps=4, schedule="wsd")
PLATEAU = 17  # steps of 20 that have the peak rate: 0.8 * 20, and the first of the decay, which begins at 1


def train_steps(folder: Path, steps: int, schedule: str = "wsd", stop_at: int | None = None) -> torch.Tensor:
    """Train to a length; the weights."""
    accelerator = Accelerator(cpu=True)
    fit, optim = dataclasses.replace(fit_config(), steps=steps), dataclasses.replace(WSD, schedule=schedule)
    task = tiny_task(accelerator, dropout=0.1, fit=fit, optim=optim, stop_at=stop_at)
    train(folder, task, accelerator)
    return torch.cat([each.detach().flatten() for each in (*task.model.parameters(), *task.exported().parameters())])


def test_lengths_share_the_steps_before_the_rate_falls() -> None:
    assert Schedule(STEPS, (Rates(WSD),)).plateau_end == PLATEAU
    assert Schedule(STEPS, (Rates(WSD),)).shared_steps(24) == PLATEAU
    assert Schedule(24, (Rates(WSD),)).shared_steps(STEPS) == PLATEAU
    constant = dataclasses.replace(WSD, schedule="constant")
    assert Schedule(STEPS, (Rates(constant),)).plateau_end == STEPS
    cosine = Schedule(STEPS, (Rates(dataclasses.replace(WSD, schedule="cosine")),))
    assert cosine.plateau_end == 0 and cosine.shared_steps(24) == 5
    late = Schedule(STEPS, (Rates(constant), Rates(WSD, start=10)))
    assert late.plateau_end == 10 + 9, "a second optimizer that begins later falls over the last fifth of its own steps"


@pytest.mark.parametrize("stop_at", [None, 18, 22])
def test_an_extended_training_is_the_longer_one_bit_for_bit(tmp_path: Path, stop_at: int | None) -> None:
    whole = train_steps(tmp_path / "whole", 30)
    train_steps(tmp_path / "parts", STEPS)
    assert (PLATEAU, STEPS) in checkpoint_lengths(tmp_path / "parts" / "checkpoints")
    if stop_at is not None:
        train_steps(tmp_path / "parts", 30, stop_at=stop_at)
    assert torch.equal(train_steps(tmp_path / "parts", 30), whole)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    steps = checkpoint_lengths(tmp_path / "parts" / "checkpoints")
    assert all(length == 30 or step <= PLATEAU for step, length in steps), "what the shorter length left is gone"


def test_a_kill_between_saving_and_tidying_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_steps(tmp_path / "whole", 30)
    train_steps(tmp_path / "parts", STEPS)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, AssertionError)):
        patch.setattr("foundation.storage.durable.remove_folder", killed)
        train_steps(tmp_path / "parts", 30)
    assert (STEPS, STEPS) in checkpoint_lengths(tmp_path / "parts" / "checkpoints")
    assert torch.equal(train_steps(tmp_path / "parts", 30), whole)


def test_without_a_plateau_the_jump_of_the_rate_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_steps(tmp_path, STEPS, "cosine")
    train_steps(tmp_path, 30, "cosine")
    said = capsys.readouterr().out
    assert "continued with 30 steps instead of 20 at step 20: the learning rate rises from 0.00017" in said
    assert "cosine has no plateau" in said
    assert max(step for step, _ in checkpoint_lengths(tmp_path / "checkpoints")) == 30


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    train_steps(tmp_path, STEPS)
    with pytest.raises(CheckpointError, match="has done more steps"):
        train_steps(tmp_path, 15)
