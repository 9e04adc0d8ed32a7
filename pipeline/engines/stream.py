"""Work as a stream of numbered batches: read, compute, finish; and an engine that does it in this process.

Batches are fixed by the caller, so that every engine computes the same ones. What a worker needs is opened in it, by
functions that are small to pickle; weights travel as the files of a folder.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

Step = Callable[[Any], Any]
"""one batch => the next step's input"""


@dataclass(frozen=True)
class Stream:
    """What is done with each batch.

    Attributes:
        what: is done with batches, for people: ``encoding``.
        compute: opens the step that needs the network.
        read: opens the step before it, which needs no network; None where a batch is ready as it is.
        finish: opens the step after it, which needs no network; None for none.
        device: of the network: cpu, cuda, ...
    """

    what: str
    compute: Callable[[], Step]
    read: Callable[[], Step] | None = None
    finish: Callable[[], Step] | None = None
    device: str = "cpu"

    @property
    def steps(self) -> list[str]:
        """Names of the steps that there are, in order."""
        return [name for name in ("read", "compute", "finish") if getattr(self, name) is not None]


class Engine(Protocol):
    """Does a stream's work."""

    def results(self, stream: Stream, batches: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Each batch's number with its result, once, in any order.

        Args:
            stream: what is done.
            batches: number, unlike the others', and content; taken as they are needed.

        Raises:
            TesseraError: that a step raised; or the engine cannot go on.
            Interrupted: on SIGTERM or SIGINT.
        """
        ...


class LocalEngine:
    """Works in this process. The next batch is read in a thread while one is computed."""

    def results(self, stream: Stream, batches: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """See ``Engine``; in the order of the batches."""
        read, compute, finish = (_opened(getattr(stream, name)) for name in ("read", "compute", "finish"))
        waiting: tuple[int, Future[Any]] | None = None
        with ThreadPoolExecutor(max_workers=1) as reader:
            for number, content in batches:
                after = number, reader.submit(read, content)
                if waiting is not None:
                    yield waiting[0], finish(compute(waiting[1].result()))
                waiting = after
            if waiting is not None:
                yield waiting[0], finish(compute(waiting[1].result()))


def _opened(step: Callable[[], Step] | None) -> Step:
    return (lambda content: content) if step is None else step()


def in_order(results: Iterable[tuple[int, Any]], numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Results in the order of ``numbers``, each of which comes once; what comes early is held."""
    early: dict[int, Any] = {}
    wanted = iter(numbers)
    expected = next(wanted, None)
    for number, result in results:
        early[number] = result
        while expected in early:
            yield expected, early.pop(expected)
            expected = next(wanted, None)


T = TypeVar("T")


class Movable(Generic[T]):
    """A model, or anything with ``to(device)``, that arrives in another process on that process's first device.

    Attributes:
        content: the model; None and functions stay as they are.
    """

    def __init__(self, content: T) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        content: Any = self.content
        device = _device_of(content)
        if device is None or device == "cpu":
            return Movable, (content,)
        return _arrived, (copy.deepcopy(content).to("cpu"), device)


def _arrived(content: Any, device: str) -> Movable[Any]:
    return Movable(content.to(device))


def _device_of(content: Any) -> str | None:
    """Kind of device of a model or generator; None of something else."""
    if hasattr(content, "parameters"):
        first = next(content.parameters(), None)
        return None if first is None else str(first.device.type)
    device = getattr(content, "device", None)
    return None if device is None else str(getattr(device, "type", device))


@dataclass(frozen=True)
class PackedFolder:
    """The files of a folder in memory: a model on its way to a worker.

    Attributes:
        files: relative path => bytes, as arrays, which Ray shares between the processes of a machine.
    """

    files: dict[str, np.ndarray]

    @classmethod
    def of(cls, folder: Path) -> PackedFolder:
        """Read all files below a folder."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): np.fromfile(path, np.uint8) for path in paths})

    @contextlib.contextmanager
    def unpacked(self) -> Iterator[Path]:
        """The folder, on this machine's disk while the context lasts."""
        with tempfile.TemporaryDirectory(prefix="tessera-") as name:
            folder = Path(name)
            for inside, content in self.files.items():
                path = folder / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                content.tofile(path)
            yield folder
