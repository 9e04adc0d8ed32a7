"""A step with a number that is not finite changes nothing, on any process, and nothing of it is ever saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from support.small_tokenizer import PREPROCESS, Blots, fresh_task

from foundation.errors import TrainingError
from foundation.images.image_set import ImageSet
from foundation.training.checkpoints import named_tensors
from foundation.training.config import FitConfig
from foundation.training.fit import fit
from foundation.training.log import MetricsLog
from stage1_tokenizer.losses.config import AdversarialConfig, DiscriminatorConfig
from stage1_tokenizer.train import TokenizerTask

GAN = AdversarialConfig(
    weight=0.1, start_step=1, ramp_steps=0, lecam_weight=0.01, discriminator=DiscriminatorConfig(width=8, n_layers=1)
)
Spoil = Callable[[TokenizerTask, dict[str, torch.Tensor]], None]


class Poison:
    """Turns a gradient into NaN while it is on."""

    def __init__(self, value: float) -> None:
        self.value, self.on = value, False

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self.value if self.on else gradient


def tensors(task: TokenizerTask) -> dict[str, torch.Tensor]:
    """Copies of weights, averages, codebook, optimizer, discriminator and its running means."""
    return {name: value.clone() for name, value in named_tensors(task.state_dict())}


def changed(before: dict[str, torch.Tensor], task: TokenizerTask) -> set[str]:
    after = tensors(task)
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def batch(step: int, rank: int = 0) -> dict[str, torch.Tensor]:
    indices = (np.arange(8) + 8 * step + 31 * rank) % 64
    return {"images": ImageSet(Blots(), PREPROCESS).images(indices)}


PLACES = {
    "an input": lambda task, value, images: images[1, 0, 3, 3:5].fill_(value),
    "the generator's gradient": lambda task, value, images: task.model.decoder.conv_out.weight,
    "the encoder's gradient": lambda task, value, images: next(task.model.encoder.parameters()),
    "the discriminator's gradient": lambda task, *_: next(task.objective.adversary.learner.model.parameters()),
}


def spoil(task: TokenizerTask, place: str, value: float, images: torch.Tensor) -> Any:
    """Inject a value; returns what undoes it."""
    target = PLACES[place](task, value, images)
    if place == "an input":
        return lambda: None
    poison = Poison(value)
    poison.on = True
    return target.register_hook(poison).remove


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", PLACES)
def test_a_spoilt_step_changes_nothing(place: str, value: float, keep: Callable) -> None:
    task = fresh_task(adversarial=GAN)
    for step in range(3):
        task.train_step(batch(step), step)
    before, images = tensors(task), batch(3)["images"]
    undo = spoil(task, place, value, images)
    metrics = task.train_step({"images": images}, 3)
    undo()
    moved = changed(before, task)
    adversary = {name for name in moved if name.startswith("objective/")}
    if place == "the discriminator's gradient":
        assert not adversary and metrics["discriminator_skipped_steps"] == 1 and metrics["skipped_steps"] == 0
    else:
        assert not moved and metrics["skipped_steps"] == 1
    task.train_step(batch(4), 4)
    again = changed(before, task)
    for part in ("model/", "average/", "optimizer/", "objective/", "model/bottleneck.quantizer.codebook"):
        assert [name for name in again if name.startswith(part)], f"{part} did not go on"
    keep("a step that is not finite", places=1, **{"tensors that moved": 0})


def on_two(folder: Path) -> None:
    """Every place in turn, spoilt on process 1 only."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    task = fresh_task(adversarial=GAN)
    rank = task.learner.accelerator.process_index
    assert task.learner.accelerator.num_processes == 2
    for step in range(3):
        task.train_step(batch(step, rank), step)
    for step, place in enumerate(PLACES, start=3):
        before, images = tensors(task), batch(step, rank)["images"]
        undo = spoil(task, place, torch.nan, images) if rank == 1 else lambda: None
        task.train_step({"images": images}, step)
        undo()
        moved = changed(before, task)
        if place == "the discriminator's gradient":
            assert not [name for name in moved if name.startswith("objective/")], (rank, place)
        else:
            assert not moved, (rank, place, sorted(moved)[:5])
    before = tensors(task)
    task.train_step(batch(9, rank), 9)
    assert changed(before, task)
    torch.save(tensors(task), folder / f"{rank}.pt")


def test_what_is_spoilt_on_one_process_changes_nothing_on_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Callable
) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    debug_launcher(on_two, (tmp_path,), num_processes=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different
    keep("a step that is not finite", **{"places on one of two processes": len(PLACES), "tensors that moved": 0})


@pytest.mark.parametrize("place", ["weights", "codebook", "average", "optimizer", "discriminator"])
def test_weights_that_are_not_finite_are_never_saved(place: str, tmp_path: Path, keep: Callable) -> None:
    """They become so after step 6; checkpoints are saved after steps 5 and 10, on the way and when stopped."""

    def damage(task: TokenizerTask) -> None:
        targets = {
            "weights": task.model.decoder.conv_out.weight,
            "codebook": task.model.bottleneck.quantizer.codebook,
            "average": task.exported().decoder.conv_out.weight,
            "optimizer": next(iter(task.learner.optimizer.state.values()))["exp_avg"],
            "discriminator": next(task.objective.adversary.learner.model.parameters()),
        }
        with torch.no_grad():
            targets[place].view(-1)[0] = torch.nan

    images = ImageSet(Blots(), PREPROCESS)
    task = fresh_task(images=images, adversarial=GAN)
    real = task.train_step

    def train_step(batch: dict[str, torch.Tensor], step: int) -> Any:
        metrics = real(batch, step)
        if step == 6:
            damage(task)
        return metrics

    task.train_step = train_step  # type: ignore[method-assign]
    config = FitConfig(steps=12, batch_size=8, evaluate_every=100, checkpoint_every=5)
    with pytest.raises(TrainingError, match="finite"):
        fit(
            task,
            images,
            config,
            task.learner.accelerator,
            seed=1,
            checkpoints=tmp_path / "checkpoints",
            log=MetricsLog(tmp_path / "metrics.jsonl", "tokenizer"),
            identity=lambda steps: {},
        )
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    keep("a step that is not finite", **{"kinds of state never saved": 1})
