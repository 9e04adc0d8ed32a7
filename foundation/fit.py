"""The one training loop. The loop owns time (order of data, cadence, checkpoints); the task owns gradients.

A run that is killed and started again continues from its last checkpoint and ends with the same weights: the order of
the data is a function of (seed, epoch), dropout is seeded by (seed, step, rank), and the learning rate is a function
of the step, so that a position is one integer.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from foundation.checkpoint import latest_checkpoint, save_checkpoint
from foundation.config import require
from foundation.data_order import DataOrder
from foundation.errors import CheckpointError, DataError, Interrupted, TrainingError
from foundation.log import MetricsLog, read_metrics
from foundation.randomness import derive_seed
from foundation.stop_signal import StopSignal

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Length and cadence of a training."""

    steps: int = 1000
    """optimizer steps"""
    batch_size: int = 64
    """examples in one optimizer step, over all processes"""
    evaluate_every: int = 100
    """optimizer steps between evaluations on the held-out set"""
    checkpoint_every: int = 100
    """optimizer steps between checkpoints"""
    keep_checkpoints: int = 2
    """how many checkpoints stay on disk"""
    log_every: int = 10
    """optimizer steps between lines of training metrics"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "checkpoint_every", "keep_checkpoints", "log_every"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive whole number")


class Examples(Protocol):
    """Training data that can be read at any position."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """The examples ``indices``, each in its pass ``epochs`` over the data."""
        ...


class Task(Protocol):
    """What a stage hands to ``fit``."""

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor | float]:
        """Forward, backward, every optimizer, averages of weights; returns scalars to log."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Metrics over the whole held-out set."""
        ...

    def exported(self) -> nn.Module:
        """The model that users load, normally with averaged weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        ...


Health = Callable[[list[dict[str, Any]]], list[str]]


def _no_concern(rows: list[dict[str, Any]]) -> list[str]:
    return []


def fit(
    task: Task,
    examples: Examples,
    config: FitConfig,
    accelerator: Accelerator,
    *,
    seed: int,
    checkpoints: Path,
    log: MetricsLog,
    identity: dict[str, str],
    health: Health = _no_concern,
) -> None:
    """Train ``task`` to ``config.steps``, continuing from the newest checkpoint that verifies.

    Args:
        task: the stage; it has prepared its modules and optimizers with ``accelerator``.
        examples: the training data.
        config: length and cadence.
        accelerator: devices and processes.
        seed: of the data order and of dropout.
        checkpoints: folder of this stage's checkpoints.
        log: where metrics go.
        identity: a hash of each thing that determines the result; a checkpoint with others is refused by their names.
        health: called after each evaluation with this stage's metrics so far; what it returns is shown and logged.

    Raises:
        Interrupted: after SIGTERM or SIGINT, with a checkpoint saved at the step boundary.
        CheckpointError: the checkpoints belong to another recipe or data.
        DataError: no examples, or a batch size that the processes cannot share.
        TrainingError: the weights or the last metrics are not finite.
    """
    if len(examples) == 0:
        raise DataError("there are no training examples", fix="check the data source")
    keeper = _Keeper(task, checkpoints, config, identity, accelerator)
    start = keeper.restore()
    log.forget_from(start)
    batches = _batches(examples, DataOrder(len(examples), seed), config, accelerator, start)
    with StopSignal() as stop, _progress_bar(log, config, start, accelerator) as bar, contextlib.closing(batches):
        clock = time.perf_counter()
        for step in range(start, config.steps):
            if step % config.evaluate_every == 0:
                _evaluate(task, step, log, health, bar)
            torch.manual_seed(derive_seed(seed, "step", step, accelerator.process_index))
            metrics = task.train_step(next(batches), step)
            bar.update()
            if step % config.log_every == 0 or step == config.steps - 1:
                seconds = {"seconds": time.perf_counter() - clock}
                log.write("train", step, {**_averaged(metrics, accelerator), **seconds})
            stopping = stop.agreed(accelerator)
            if stopping or (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                keeper.save(step + 1)
            if stopping:
                raise Interrupted(stop.number)
        final = _evaluate(task, config.steps, log, health, bar)
        _require_useful(final, checkpoints)


def _progress_bar(log: MetricsLog, config: FitConfig, start: int, accelerator: Accelerator) -> tqdm[Any]:
    hidden = not accelerator.is_main_process
    return tqdm(total=config.steps, initial=start, desc=f"training {log.stage}", unit="step", delay=1, disable=hidden)


def _averaged(metrics: dict[str, torch.Tensor | float], accelerator: Accelerator) -> dict[str, float]:
    """The mean over processes of each metric."""
    numbers = {name: float(value) for name, value in metrics.items()}
    if accelerator.num_processes == 1:
        return numbers
    means: Any = accelerator.reduce(torch.tensor(list(numbers.values()), device=accelerator.device), "mean")
    return dict(zip(numbers, means.tolist(), strict=True))


def _evaluate(task: Task, step: int, log: MetricsLog, health: Health, progress: tqdm[Any]) -> dict[str, float]:
    metrics = task.evaluate()
    log.write("held_out", step, metrics)
    progress.set_postfix({name: f"{value:.4g}" for name, value in list(metrics.items())[:3]}, refresh=False)
    for sentence in health(read_metrics(log.path, log.stage)) if log.enabled else ():
        log.warn(step, sentence)
        progress.write(f"warning, {log.stage} step {step}: {sentence}")
    return metrics


@dataclass(frozen=True)
class _Keeper:
    """Saves a task to its checkpoints and restores it."""

    task: Task
    checkpoints: Path
    config: FitConfig
    identity: dict[str, str]
    accelerator: Accelerator

    def restore(self) -> int:
        """Load the newest sound checkpoint; returns the steps done, 0 without one."""
        found = latest_checkpoint(self.checkpoints)
        if found is None:
            return 0
        for reason in found.skipped:
            self.accelerator.print(f"skipped a damaged checkpoint: {reason}")
        saved = found.state["identity"]
        changed = [name for name, value in self.identity.items() if saved.get(name) != value]
        if changed:
            raise CheckpointError(
                f"the checkpoint was made with something else: {', '.join(changed)} changed since",
                field=str(self.checkpoints),
                fix="undo the change, give another --run_dir, or delete that folder to train this stage anew",
            )
        self.task.load_state_dict(found.state["task"])
        self.accelerator.print(f"continuing from step {found.step} ({self.checkpoints})")
        return found.step

    def save(self, step: int) -> None:
        """Publish a checkpoint after ``step`` steps; every process waits until it is there."""
        _require_finite(self.task)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            samples = step * self.config.batch_size
            state = {"identity": self.identity, "samples_seen": samples, "task": self.task.state_dict()}
            save_checkpoint(self.checkpoints, step, state, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()


def _require_useful(metrics: dict[str, float], checkpoints: Path) -> None:
    """A model whose held-out metrics are not numbers is of no use to anyone."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"training diverged: {', '.join(bad)} on the held-out set is not finite",
            fix=f"lower the learning rate, and remove {checkpoints} to train this stage anew",
        )


def _require_finite(task: Task) -> None:
    """Weights that are not finite are never saved: the last checkpoint stays a sound one."""
    for name, value in task.exported().state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"the weights are no longer finite ({name})",
                fix="lower the learning rate; the last checkpoint is sound, remove it to start over",
            )


def _batches(
    examples: Examples, order: DataOrder, config: FitConfig, accelerator: Accelerator, start: int
) -> Generator[dict[str, torch.Tensor], None, None]:
    """The share of each global batch that is this process's of each global batch, read one step ahead in a thread."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if config.batch_size % world:
        raise DataError("is not divisible by the number of processes", field="batch_size", found=config.batch_size,
                        expected=f"a multiple of {world}")  # fmt: skip

    def load(step: int) -> dict[str, torch.Tensor]:
        share = config.batch_size // world
        first = step * config.batch_size + rank * share
        return examples.batch(*order.at(np.arange(first, first + share)))

    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead: Future[dict[str, torch.Tensor]] = reader.submit(load, start)
        for step in range(start, config.steps):
            batch = ahead.result()
            if step + 1 < config.steps:
                ahead = reader.submit(load, step + 1)
            yield {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
