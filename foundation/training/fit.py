"""Training loop. The loop owns time (order of data, cadence, checkpoints); the task owns gradients.

A resumed run ends with the weights of an uninterrupted one: the data order is a function of (seed, epoch), dropout is
seeded by (seed, step, rank), and the learning rate is a function of the step; a position is one integer.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.errors import DataError, Interrupted, TrainingError
from foundation.randomness import DataOrder, derive_seed
from foundation.training.checkpoints import CheckpointManager, Identity, sound_step
from foundation.training.config import FitConfig
from foundation.training.evaluation import Evaluations, Health
from foundation.training.lengths import Rates, Schedule
from foundation.training.log import MetricsLog, read_metrics
from foundation.training.optim import DivergedError
from foundation.training.parallel import all_reduce_mean
from foundation.training.stop_signal import StopSignal
from foundation.training.task import Examples, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


_SAFE_RATE, _LOWER = 1e-3, 0.3
"""of what the advice after a divergence names: at most this learning rate, and this share of the one that was used"""


def fit(
    task: Task,
    examples: Examples,
    config: FitConfig,
    accelerator: Accelerator,
    *,
    seed: int,
    checkpoints: Path,
    log: MetricsLog,
    identity: Identity,
    optims: Sequence[Rates] = (),
    health: Health = lambda rows: [],
    at_rest: Callable[[], None] = lambda: None,
    previews: Path | None = None,
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
        identity: number of steps => a hash of everything that determines the result, by name; checkpoints of another
            identity are refused, but for the number of steps.
        optims: learning rates of every optimizer of the task: they say from where a training of another length goes on.
        health: called after each evaluation with this stage's metrics so far; its warnings are shown and logged.
        at_rest: called by every process after each evaluation and before each checkpoint.
        previews: folder of the pictures of evaluations; None draws none.

    Raises:
        Interrupted: after SIGTERM or SIGINT, with a checkpoint saved at the step boundary.
        CheckpointError: the checkpoints belong to another recipe or data.
        DataError: no examples, or a batch size that the processes cannot share.
        TrainingError: the weights or the last metrics are not finite; names the last sound checkpoint, if any.
    """
    DataError.unless(len(examples) > 0, "there are no training examples", fix="check the data source")
    schedule = Schedule(config.steps, tuple(optims))
    n_kept = config.keep_checkpoints
    manager = CheckpointManager(task, checkpoints, identity, schedule, accelerator, config.batch_size, n_kept)
    start = manager.restore()
    log.forget_from(start)
    evaluations = Evaluations(task, config, log, health, previews)
    manager.sound_until = evaluations.sound_until
    try:
        _train(task, examples, config, accelerator, seed, manager, start, log, evaluations, at_rest)
    except DivergedError as error:
        raise _advised(error, manager, log) from error
    finally:
        log.close()
    accelerator.print(evaluations.share_text(), flush=True)


def _train(
    task: Task,
    examples: Examples,
    config: FitConfig,
    accelerator: Accelerator,
    seed: int,
    manager: CheckpointManager,
    start: int,
    log: MetricsLog,
    evaluations: Evaluations,
    at_rest: Callable[[], None],
) -> None:
    """The steps from ``start`` to the end."""
    order = getattr(examples, "order", lambda seed, batch_size: DataOrder(len(examples), seed))
    batches = _batches(examples, order(seed, config.batch_size), config, accelerator, start)
    plateau_end = manager.schedule.plateau_end
    with StopSignal() as stop, _progress_bar(log, config, start, accelerator) as bar, contextlib.closing(batches):
        clock = _Clock()
        for step in range(start, config.steps):
            if evaluations.is_due(step):
                evaluations.run(step, bar)
                manager.sound_until = evaluations.sound_until
                at_rest()
            torch.manual_seed(derive_seed(seed, "step", step, accelerator.process_index))
            metrics = task.train_step(clock.wait_for(batches), step)
            bar.update()
            if step % config.log_every == 0 or step == config.steps - 1:
                log.write("train", step, {**_averaged(metrics, accelerator), **clock.read()})
            stopping = stop.agreed(accelerator)
            due = (step + 1) % config.checkpoint_every == 0 or step + 1 in (plateau_end, config.steps)
            if stopping or due:
                at_rest()
                manager.save(step + 1)
            if stopping:
                raise Interrupted(stop.number)
        final = evaluations.run(config.steps, bar)
        manager.sound_until = evaluations.sound_until
        at_rest()
        if stop.agreed(accelerator):  # one that came during the last save or evaluation
            raise Interrupted(stop.number)
        _require_useful(final)


class _Clock:
    """Seconds since the start, and seconds that steps waited for data."""

    def __init__(self) -> None:
        self._began, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def wait_for(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The next batch."""
        asked = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - asked
        self._steps += 1
        return batch

    def read(self) -> dict[str, float]:
        """``seconds``, and ``loading_seconds``: the mean wait of the steps since the last reading."""
        mean_wait = self._waited / max(1, self._steps)
        self._waited, self._steps = 0.0, 0
        return {"seconds": time.perf_counter() - self._began, "loading_seconds": mean_wait}


def _progress_bar(log: MetricsLog, config: FitConfig, start: int, accelerator: Accelerator) -> tqdm[Any]:
    hidden = not accelerator.is_main_process
    return tqdm(total=config.steps, initial=start, desc=f"training {log.stage}", unit="step", delay=1, disable=hidden)


def _averaged(metrics: dict[str, torch.Tensor | float], accelerator: Accelerator) -> dict[str, float]:
    """The mean over processes of each metric."""
    numbers = {name: float(value) for name, value in metrics.items()}
    place = accelerator.device if accelerator.num_processes > 1 else torch.device("cpu")  # MPS has no float64
    values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=place)
    return dict(zip(numbers, all_reduce_mean(values).tolist(), strict=True))


def _require_useful(metrics: dict[str, float]) -> None:
    """Refuse a model whose final validation metrics are not finite."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(f"{', '.join(bad)} on the validation set is not finite")


def _advised(error: DivergedError, manager: CheckpointManager, log: MetricsLog) -> TrainingError:
    """What happened, the last checkpoint that was sound, and a command that trains with a lower rate.

    A checkpoint is sound if the weights of its step, or later ones, had finite and sensible validation metrics.
    """
    step = sound_step(manager.checkpoints, manager.sound_until)
    found = f"the last sound checkpoint is of step {step:,}" if step else "no checkpoint is sound"
    expected = f"finite validation metrics, as at step {step:,}" if step else "finite validation metrics"
    rates = [row.get("learning_rate") for row in read_metrics(log.path, log.stage, "train")]
    rate = min(_SAFE_RATE, _LOWER * max((each for each in rates if each), default=_SAFE_RATE))
    run = manager.checkpoints.parent.parent
    new = next(path for i in count(2) if not (path := run.parent / f"{run.name or run.resolve().name}-{i}").exists())
    change = f"--{log.stage}.training.optim.learning_rate {rate:.2g}"
    again = f"tessera run {shlex.quote(str(run))} -o {shlex.quote(str(new))} {change}"
    if log.stage == "prior":
        again += f" --tokenizer.pretrained {shlex.quote(str(run / 'tokenizer'))}"
    what = f"training diverged: {str(error).splitlines()[0]}"
    fix = f"train with a lower rate in a new folder, which leaves this one as it is: {again}"
    return TrainingError(what, field=f"{log.stage}.training", found=found, expected=expected, fix=fix)


def _batches(
    examples: Examples, order: DataOrder, config: FitConfig, accelerator: Accelerator, start: int
) -> Generator[dict[str, torch.Tensor], None, None]:
    """This process's share of each batch, read one step ahead in a thread."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if config.batch_size % world:
        what, expected = "is not divisible by the number of processes", f"a multiple of {world}"
        raise DataError(what, field="batch_size", found=config.batch_size, expected=expected)

    def load(step: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        share = config.batch_size // world
        first = step * config.batch_size + rank * share
        positions = np.arange(first, first + share)
        return examples.batch(*order.at(positions)), positions

    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead: Future[tuple[dict[str, torch.Tensor], np.ndarray]] = reader.submit(load, start)
        for step in range(start, config.steps):
            batch, positions = ahead.result()
            if step + 1 < config.steps:
                ahead = reader.submit(load, step + 1)
            moved = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
            yield {**moved, "positions": torch.from_numpy(positions)}
