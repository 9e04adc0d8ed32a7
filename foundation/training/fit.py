"""Training loop. The loop owns time (order of data, cadence, checkpoints); the task owns gradients.

A resumed run ends with the weights of an uninterrupted one: the data order is a function of (seed, epoch), dropout is
seeded by (seed, step, rank), and the learning rate is a function of the step; a position is one integer.
"""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from foundation.errors import DataError, Interrupted, TrainingError
from foundation.randomness import derive_seed
from foundation.training.checkpoints import CheckpointManager, Identity, sound_step
from foundation.training.clock import Clock, ModelWork
from foundation.training.config import Falling, FitConfig
from foundation.training.evaluation import Evaluations, Health
from foundation.training.heartbeat import doing, naming_the_dead
from foundation.training.lengths import Rates, Schedule
from foundation.training.loading import BatchShare, read_batches
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
    optims: Sequence[Rates | Falling] = (),
    health: Health = lambda rows: [],
    work: ModelWork | None = None,
    at_rest: Callable[[], None] = lambda: None,
    previews: Path | None = None,
    evaluated: Callable[[], None] = lambda: None,
    words: Callable[[], dict[str, str]] = dict,
    workers: int | None = None,
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
        optims: learning rates of every optimizer of the task, and what else falls with its steps: they say from where a
            training of another length goes on.
        health: called after each evaluation with this stage's metrics so far; its warnings are shown and logged.
        work: what a step computes and the device could, for the share of the peak in the log; None leaves it out.
        at_rest: called by every process after each evaluation and before each checkpoint.
        previews: folder of the pictures of evaluations; None draws none.
        evaluated: called after each evaluation by the process that logs.
        words: more for the progress bar, called with each line of the log.
        workers: processes that read examples; None takes one for each usable core where images are decoded, else none.

    Raises:
        Interrupted: after SIGTERM or SIGINT, with a checkpoint saved at the step boundary.
        CheckpointError: the checkpoints belong to another recipe or data.
        StorageError: a checkpoint could not be saved; on every process, at a line of the log or the next save.
        DataError: no examples, or a batch size that the processes cannot share.
        TrainingError: the weights or the last metrics are not finite; names the last sound checkpoint, if any. Or
            another process has ended or hangs; names it.
    """
    DataError.unless(len(examples) > 0, "there are no training examples", fix="check the data source")
    schedule = Schedule(config.steps, tuple(optims))
    n_kept = config.keep_checkpoints
    manager = CheckpointManager(task, checkpoints, identity, schedule, accelerator, config.batch_size, n_kept)
    start = manager.restore()
    log.forget_from(start)
    evaluations = Evaluations(task, config, log, health, previews, evaluated)
    manager.sound_until = evaluations.sound_until
    try:
        with manager, naming_the_dead(accelerator):
            share = BatchShare(config.batch_size, accelerator.process_index, accelerator.num_processes)
            span, device = {"start": start, "end": config.steps}, accelerator.device
            batches = read_batches(examples, share, seed=seed, **span, workers=workers, device=device)
            training = _Training(task, config, accelerator, seed, manager, log, evaluations, at_rest, words)
            training.run(batches, start, work)
    except DivergedError as error:
        raise _advised(error, manager, log) from error
    finally:
        log.close()
    accelerator.print(evaluations.share_text(), flush=True)


@dataclass
class _Training:
    """The steps of a training from ``start`` to the end."""

    task: Task
    config: FitConfig
    accelerator: Accelerator
    seed: int
    manager: CheckpointManager
    log: MetricsLog
    evaluations: Evaluations
    at_rest: Callable[[], None]
    words: Callable[[], dict[str, str]]

    def run(self, batches: Generator[dict[str, torch.Tensor], None, None], start: int, work: ModelWork | None) -> None:
        """Take the steps, evaluate, save.

        Raises:
            Interrupted, DivergedError, StorageError, DataError: see ``fit``.
        """
        config, accelerator = self.config, self.accelerator
        with StopSignal() as stop, self._progress_bar(start) as bar, contextlib.closing(batches):
            clock = Clock(accelerator.num_processes, accelerator.device, work)
            for step in range(start, config.steps):
                if self.evaluations.is_due(step):
                    self._evaluate(step, bar)
                doing(accelerator, f"at step {step:,} of {self.log.stage}")
                self._step(step, clock, batches, bar)
                self._save_if_due(step + 1, stopping=stop.agreed(accelerator), number=stop.number)
            final = self._evaluate(config.steps, bar)
            self.manager.wait()
            if stop.agreed(accelerator, last=True):  # one that came during the last save or evaluation
                raise Interrupted(stop.number)
            _require_useful(final)

    def _step(
        self, step: int, clock: Clock, batches: Generator[dict[str, torch.Tensor], None, None], bar: tqdm[Any]
    ) -> None:
        torch.manual_seed(derive_seed(self.seed, "step", step, self.accelerator.process_index))
        metrics = self.task.train_step(clock.wait_for(batches, step), step)
        bar.update()
        logging = step % self.config.log_every == 0 or step == self.config.steps - 1
        numbers = _averaged(metrics, self.accelerator) if logging else {}  # the one wait for the device
        clock.end_step()
        if logging:
            self.log.write("train", step, {**numbers, **clock.read()})
            bar.set_postfix({**self.evaluations.headline, **clock.shown(numbers), **self.words()}, refresh=False)
            self.task.settle(numbers)
            self.manager.report()

    def _evaluate(self, step: int, bar: tqdm[Any]) -> dict[str, float]:
        doing(self.accelerator, f"evaluating {self.log.stage} at step {step:,}")
        metrics = self.evaluations.run(step, bar)
        self.manager.sound_until = self.evaluations.sound_until
        self.at_rest()
        return metrics

    def _save_if_due(self, done: int, *, stopping: bool, number: int) -> None:
        """Save after ``done`` steps where the recipe wants it, or a signal ends the training."""
        plateau_end = self.manager.schedule.plateau_end
        if stopping or done % self.config.checkpoint_every == 0 or done in (plateau_end, self.config.steps):
            doing(self.accelerator, f"saving {self.log.stage} at step {done:,}")
            self.at_rest()
            self.manager.save(done)
        if stopping:
            self.manager.wait()
            raise Interrupted(number)

    def _progress_bar(self, start: int) -> tqdm[Any]:
        hidden = not self.accelerator.is_main_process
        desc = f"training {self.log.stage}"
        return tqdm(total=self.config.steps, initial=start, desc=desc, unit="step", delay=1, disable=hidden)


def _averaged(metrics: dict[str, torch.Tensor | float], accelerator: Accelerator) -> dict[str, float]:
    """The mean over processes of each tensor, and the numbers, which are equal on all; waits once for the device."""
    tensors = {name: each.detach() for name, each in metrics.items() if isinstance(each, torch.Tensor)}
    several = accelerator.num_processes > 1  # a sum over processes in float64, which MPS has not
    dtype = torch.float64 if several else torch.float32
    values: list[float] = []
    if tensors:
        values = all_reduce_mean(torch.stack([each.to(dtype) for each in tensors.values()])).tolist()
    means = dict(zip(tensors, values, strict=True))
    return {name: means[name] if name in means else float(value) for name, value in metrics.items()}


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
