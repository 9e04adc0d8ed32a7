"""Training batches of one process, read ahead by worker processes or by a thread.

Torch's ``DataLoader`` runs the workers; the order is a function of the step, so reading starts at any step, and neither
the number of workers nor the death of one changes a batch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_sentinels
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from foundation.errors import DataError, RemoteTraceback, portable
from foundation.hardware import usable_cores
from foundation.randomness import DataOrder, Order
from foundation.threads import use_one_thread
from foundation.training.heartbeat import SAY_SECONDS, VARIABLE, process_timeout
from foundation.training.shared_batches import SharedBatches, Stored, pinned_copy, shared_batches
from foundation.training.task import Examples

BATCHES_AHEAD = 2
"""for each worker process: one that it reads and one that waits"""
MAX_DEATHS = 3
"""deaths of workers without a batch between them, after which reading gives up"""
_FORKS = sys.platform.startswith("linux")
_SLOW_WAY = "batches are too large for the memory that processes share, and take a slower way: fewer images in a batch"
_SECONDS_TO_CLOSE = 5.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class BatchShare:
    """The part of each global batch that one process trains on.

    Attributes:
        batch_size: of all processes together.
        rank, world: which process of how many.
    """

    batch_size: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            what, expected = "is not divisible by the number of processes", f"a multiple of {self.world}"
            raise DataError(what, field="batch_size", found=self.batch_size, expected=expected)

    def positions(self, step: int) -> np.ndarray:
        """(B,) int64 positions in the endless sequence of samples."""
        n = self.batch_size // self.world
        first = step * self.batch_size + self.rank * n
        return np.arange(first, first + n)


def n_workers(examples: Examples, asked: int | None) -> int:
    """Worker processes: what was asked for; else one for each usable core where images are decoded, else none."""
    if asked is not None:
        return asked
    n_cores = usable_cores()
    return n_cores if getattr(examples, "decodes", False) and n_cores > 1 else 0


def read_batches(
    examples: Examples,
    share: BatchShare,
    *,
    seed: int,
    start: int,
    end: int,
    workers: int | None = 0,
    device: torch.device | None = None,
) -> Generator[dict[str, torch.Tensor], None, None]:
    """The batches of the steps from ``start`` to before ``end``, on ``device``.

    Without workers a thread reads one batch ahead; only NumPy should compute there, since torch's operations would
    start a second team of OpenMP's threads. With workers, ``BATCHES_AHEAD`` batches for each are in flight.

    Args:
        examples: what is read. Where it has a method ``order(seed, batch_size)``, that is the order, else
            ``DataOrder``.
        share: the part of each batch that this process reads.
        seed: of the order.
        start, end: steps.
        workers: see ``n_workers``.
        device: where batches go; None leaves them on the CPU.

    Yields:
        what ``examples.batch`` gives, and ``positions`` (B,) int64 on the CPU.

    Raises:
        DataError: workers keep dying; or what ``examples`` raises, also in a worker.
    """
    device = device or torch.device("cpu")
    steps = Steps(examples, share, seed, n_workers(examples, workers))
    reader, record = _Reader(steps, start, end), getattr(examples, "add_failures", None)
    with ThreadPoolExecutor(1, "batches", initializer=_use_device, initargs=(device,)) as thread:
        ahead: Future[Loaded] = thread.submit(reader.read, device)
        try:
            for step in range(start, end):
                loaded = _patiently(ahead, step, steps.workers)
                if step + 1 < end:
                    ahead = thread.submit(reader.read, device)
                if loaded.failures and record is not None:
                    record(loaded.failures)
                moved = {name: value.to(device, non_blocking=True) for name, value in loaded.batch.items()}
                yield {**moved, "positions": torch.from_numpy(loaded.positions)}
        finally:
            ahead.cancel()
            wait([ahead], _SECONDS_TO_CLOSE)
            reader.close()


def _patiently(ahead: Future[Loaded], step: int, workers: int) -> Loaded:
    """The batch of a step; says what is waited for.

    Raises:
        DataError: worker processes have given none for ``TESSERA_PROCESS_TIMEOUT`` seconds. A thread is waited for.
    """
    began, limit, say_at = time.monotonic(), process_timeout().total_seconds(), SAY_SECONDS
    readers = f"{workers} processes that read" if workers else "the thread that reads"
    while not wait([ahead], _LOOK_SECONDS).done:
        waited = time.monotonic() - began
        if workers and waited >= limit:
            what, found = "processes that read images give no batch", f"{workers} processes, at step {step:,}"
            expected = f"a batch within {limit:g} s ({VARIABLE})"
            fix = "see whether the storage answers; --machine.workers 0 reads in this process"
            raise DataError(what, field="machine.workers", found=found, expected=expected, fix=fix)
        if waited >= say_at:
            say_at *= 2
            tqdm.write(f"waiting for {waited:.0f} s for the batch of step {step:,} from {readers}", file=sys.stderr)
    return ahead.result()


@dataclass(frozen=True)
class Loaded:
    """A batch as it is handed over.

    Attributes:
        batch: tensors; on the way from a worker ``Stored``, or arrays where that cannot be.
        positions: (B,) int64.
        failures: images that were found unusable since the last batch of the same worker.
    """

    batch: Any
    positions: np.ndarray
    failures: list[Any]


@dataclass(frozen=True)
class _Raised:
    """An exception on the way from a worker."""

    error: BaseException
    text: str


class Steps(Dataset[Any]):
    """A dataset whose item ``step`` is a process's share of that step's batch.

    Args:
        examples, share, seed: see ``read_batches``.
        workers: processes that will read, 0 for none.
    """

    def __init__(self, examples: Examples, share: BatchShare, seed: int, workers: int) -> None:
        self.examples, self.share, self.workers = examples, share, workers
        make = getattr(examples, "order", None)
        self.order: Order = DataOrder(len(examples), seed) if make is None else make(seed, share.batch_size)
        self.shared: SharedBatches | None = None

    def __getitem__(self, step: int) -> Loaded | _Raised:
        try:
            return self._load(step)
        except Exception as error:
            return _Raised(portable(error) if self.workers else error, traceback.format_exc())

    def _load(self, step: int) -> Loaded:
        positions = self.share.positions(step)
        batch: Any = self.examples.batch(*self.order.at(positions))
        take = getattr(self.examples, "take_failures", None)
        failures = [] if take is None else take()
        if self.workers and _FORKS:
            stored = None if self.shared is None else self.shared.store(step, batch)
            batch = stored or {name: value.numpy() for name, value in batch.items()}
        return Loaded(batch, positions, failures)


class _Reader:
    """Batches in order from a ``DataLoader``, which is made again after the death of a worker.

    It is made in the reading thread: made in the main thread, it would let a dead worker raise an exception at any line
    of a training step.
    """

    def __init__(self, steps: Steps, start: int, end: int) -> None:
        self._steps, self._step, self._end = steps, start, end
        self._iterator: Iterator[Any] | None = None
        self._workers: list[BaseProcess] = []
        self._deaths, self._closed, self._said = 0, False, set[str]()

    def read(self, device: torch.device) -> Loaded:
        """The next batch, in pinned memory for a GPU."""
        item = self._next()
        self._step, self._deaths = self._step + 1, 0
        if isinstance(item, _Raised):
            raise item.error from (RemoteTraceback(f"\n{item.text}") if self._workers else item.error.__cause__)
        return Loaded(self._received(item.batch, device.type == "cuda"), item.positions, item.failures)

    def _received(self, batch: Any, pinned: bool) -> dict[str, torch.Tensor]:
        if isinstance(batch, Stored):
            assert self._steps.shared is not None
            return self._steps.shared.take(batch, pinned=pinned)
        if any(isinstance(value, np.ndarray) for value in batch.values()):
            self._say_once(_SLOW_WAY)
        tensors = {name: torch.as_tensor(value) for name, value in batch.items()}
        return {name: pinned_copy(value) for name, value in tensors.items()} if pinned else tensors

    def close(self) -> None:
        """End the workers, whatever they do."""
        self._closed = True
        for each in self._workers:
            each.kill()
        self._workers, self._iterator = [], None

    def _next(self) -> Any:
        while True:
            try:
                if self._iterator is None:
                    self._begin()
                assert self._iterator is not None
                return next(self._iterator)
            except Exception as error:
                codes = self._codes_of_dead()
                if not codes or self._closed:
                    raise
                self._begin_again(codes, error)

    def _begin(self) -> None:
        """Start the workers at the step that comes next."""
        n, before = self._steps.workers, set(multiprocessing.active_children())
        of_workers: dict[str, Any] = {}
        if n:
            of_workers = {"prefetch_factor": BATCHES_AHEAD, "multiprocessing_context": "fork" if _FORKS else None}
            self._steps.shared = shared_batches(n * BATCHES_AHEAD + 1)  # one is being copied
        loader: DataLoader[Any] = DataLoader(
            self._steps,
            batch_size=None,
            sampler=range(self._step, self._end),
            num_workers=n,
            collate_fn=_as_it_is,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # else it takes a number from the generator of the training
            **of_workers,
        )
        self._iterator = iter(loader)
        self._workers = [each for each in multiprocessing.active_children() if each not in before] if n else []

    def _codes_of_dead(self) -> list[int]:
        """Exit codes of workers that have ended."""
        if self._workers:
            wait_for_sentinels([each.sentinel for each in self._workers], timeout=1)
        return [each.exitcode for each in self._workers if each.exitcode is not None]

    def _begin_again(self, codes: list[int], error: Exception) -> None:
        self._deaths += 1
        for each in self._workers:
            each.kill()
        self._workers, self._iterator = [], None
        ends = " and ".join(sorted({_end_text(code) for code in codes}))
        if self._deaths >= MAX_DEATHS:
            raise DataError(
                f"processes that read images end before they give a batch: {ends}",
                field="machine.workers",
                found=f"{self._steps.workers} workers, {self._deaths} times in a row at step {self._step:,}",
                fix="--machine.workers 0 reads in this process; fewer workers than now take less memory",
            ) from error
        what = f"a process that reads images {ends}; {self._steps.workers} new ones read on at step {self._step:,}"
        self._say_once(what)

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            tqdm.write(f"warning, reading: {sentence}", file=sys.stderr)


def _as_it_is(item: Any) -> Any:
    return item


def _use_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinned memory belongs to the thread's current one


def _prepare_worker(_: int) -> None:
    """Leave signals to the main process, end with it, and use one core."""
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):  # the main process saves a checkpoint, for which it needs batches
        if (each := getattr(signal, name, None)) is not None:
            signal.signal(each, signal.SIG_IGN)
    use_one_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end_text(code: int) -> str:
    """What a worker's exit code says."""
    if code >= 0:
        return f"ended with code {code}"
    reasons = {
        "SIGKILL": " (often because memory ran out)",
        "SIGBUS": " (often because memory ran out, or a mapped file was cut)",
    }
    name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else f"signal {-code}"
    return f"was ended by {name}{reasons.get(name, '')}"
