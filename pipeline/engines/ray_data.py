"""A stream's work on a Ray cluster, by Ray Data: a pool of actors for each step, batches streamed between them.

Back-pressure, retries of lost tasks and restarts of lost actors are Ray's. Where the pipeline fails for a lost node all
the same, or stands still, it starts again for the batches that are missing.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from foundation.errors import Interrupted, TesseraError, one_line
from foundation.training.stop_signal import StopSignal
from pipeline.engines.ray_cluster import nodes, resources_text
from pipeline.engines.ray_shares import Shares, shares_of
from pipeline.engines.ray_worker import ACTORS, packed, ship, unpacked
from pipeline.engines.stream import Stream
from pipeline.engines.waiting import Patience

_MOST_BATCHES = 4096
_MOST_BYTES = 1 << 27
"""of one execution's batches, which are in the cluster's memory from its start"""
_HELD = 4
"""results that wait for the caller"""
_STANDSTILL = 60.0
"""seconds without a result after which an execution whose nodes have changed starts again"""
_POLL, _JOIN = 0.5, 5.0
_FIX = "ray status shows what holds the resources; start nodes, or give fewer --workers; what is written stays"


class RayEngine:
    """Works on the connected Ray cluster.

    Args:
        workers: processes that hold the network; None lets the cluster decide.
    """

    def __init__(self, workers: int | None = None) -> None:
        import ray.data

        self._ray, self._workers = ray, workers
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every execution and every retry

    def results(self, stream: Stream, batches: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """See ``pipeline.engines.stream.Engine``."""
        with StopSignal() as stop:
            shipped: dict[str, bytes] = {}
            for window in _windows(batches):
                shipped = shipped or {step: ship(getattr(stream, step)) for step in stream.steps}
                yield from self._results_of(stream, shipped, window, stop)

    def _results_of(
        self, stream: Stream, shipped: dict[str, bytes], missing: dict[int, pa.Table], stop: StopSignal
    ) -> Iterator[tuple[int, Any]]:
        """The results of some batches, by as many executions as it takes."""
        patience = Patience(lambda: self._waits_for(stream, shares), _FIX, stream.what)
        while missing:
            shares = self._shares(stream)
            there = {each.name for each in nodes()}
            with _Execution(self._ray, stream, shipped, shares, list(missing.values())) as execution:
                while missing and not execution.is_over:
                    if stop.number:
                        raise Interrupted(stop.number)
                    table = execution.next_table()
                    if table is None:
                        if patience.seconds > _STANDSTILL and there != {each.name for each in nodes()}:
                            break
                        patience.wait()
                        continue
                    patience.moved()
                    number, content, refused = unpacked(table)
                    if refused:
                        raise content
                    if missing.pop(number, None) is not None:  # else: a batch that was done twice
                        yield number, content
            if missing:
                reason = execution.reason or "it stands still"
                print(f"{stream.what}: starts again for {len(missing):,} batches: {reason}", file=sys.stderr)
                patience.wait()
                time.sleep(_POLL)

    def _shares(self, stream: Stream) -> Shares:
        import torch

        on_gpus, threads = not stream.device.startswith("cpu"), torch.get_num_threads()
        return shares_of(nodes(), stream.steps, workers=self._workers, on_gpus=on_gpus, threads=threads)

    def _waits_for(self, stream: Stream, shares: Shares) -> str:
        return f"workers ask for {shares.text()}; the cluster has {resources_text()}"


def _windows(batches: Iterable[tuple[int, Any]]) -> Iterator[dict[int, pa.Table]]:
    """Batches of one execution each, by number."""
    window: dict[int, pa.Table] = {}
    n_bytes = 0
    for number, content in batches:
        window[number] = packed(number, content)
        n_bytes += window[number].nbytes
        if len(window) >= _MOST_BATCHES or n_bytes >= _MOST_BYTES:
            yield window
            window, n_bytes = {}, 0
    if window:
        yield window


class _Execution:
    """One execution of a pipeline over some batches, whose results a thread takes from Ray Data.

    Attributes:
        is_over: whether no more results come.
        reason: why it failed, in one line; empty if it has not.
    """

    def __init__(
        self, ray: Any, stream: Stream, shipped: dict[str, bytes], shares: Shares, tables: list[pa.Table]
    ) -> None:
        import torch

        self.is_over, self.reason = False, ""
        self._closed, self._threads_before = threading.Event(), set(threading.enumerate())
        self._results: queue.Queue[pa.Table | Exception | None] = queue.Queue(_HELD)
        dataset = ray.data.from_arrow(tables)
        context = dataset.context
        context.enable_progress_bars, context.print_on_execution_start = False, False
        for step in stream.steps:
            how = {"step": shipped[step], "threads": torch.get_num_threads()}
            dataset = dataset.map_batches(
                ACTORS[step],
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(size=shares.workers[step]),
                fn_constructor_kwargs=how,
                num_cpus=shares.cpus,
                num_gpus=shares.gpus if step == "compute" else 0,
            )
        self._thread = threading.Thread(target=self._take, args=(dataset,), name="results", daemon=True)

    def __enter__(self) -> _Execution:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if not self.is_over:
            self._end()
        self._thread.join(_JOIN)

    def next_table(self) -> pa.Table | None:
        """The next result; None if none has come for a moment, or no more come."""
        try:
            found = self._results.get(timeout=_POLL)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            self.reason = _reason(found)
        self.is_over = not isinstance(found, pa.Table)
        return found if isinstance(found, pa.Table) else None

    def _take(self, dataset: Any) -> None:
        last: Exception | None = None
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                if not all(self._put(table.slice(row, 1)) for row in range(len(table))):
                    return
        except Exception as error:
            last = error
        self._put(last)

    def _put(self, found: pa.Table | Exception | None) -> bool:
        """Hand a result over; False if nobody wants it any more."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._results.put(found, timeout=_POLL)
                return True
        return False

    def _end(self) -> None:
        """Stop Ray Data's own thread: it offers no way to end an execution that brings no results."""
        for each in set(threading.enumerate()) - self._threads_before:
            if type(each).__name__ == "StreamingExecutor":
                each.shutdown(force=False)  # type: ignore[attr-defined]  # True would wait for what runs


def _reason(error: Exception) -> str:
    """Why an execution failed, in one line.

    Raises:
        error: a step raised an exception that is none of Ray's.
    """
    from ray.exceptions import RayError, RayTaskError

    causes: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in causes:
        causes.append(each)
        each = each.__cause__ or getattr(each, "cause", None)
    if any(isinstance(each, TesseraError) for each in causes):
        raise next(each for each in causes if isinstance(each, TesseraError))
    lost = [each for each in causes if isinstance(each, RayError) and not isinstance(each, RayTaskError)]
    if not lost:
        raise error
    return one_line(lost[-1])  # type: ignore[arg-type]
