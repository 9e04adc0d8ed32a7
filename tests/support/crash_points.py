"""Faults at every durable operation in turn: the process killed, the write refused, or silently cut short.

Work is done in a forked child whose durable operations (``foundation.storage.durable.PRIMITIVES``) are counted; at the
k-th one the fault happens. Random moments would rarely hit an operation, which takes microseconds.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foundation.errors import TesseraError
from foundation.storage import durable
from foundation.storage.durable import file_sha256

WRITES = ("_write", "_append")
DONE, REFUSED, CRASHED = 0, 3, 4
REFUSALS = {"full": errno.ENOSPC, "broken": errno.EIO}
FAULTS = ("killed", *REFUSALS, "short")
SEEN = Counter[str]()
"""durable operations of this process since it was forked"""


@dataclass(frozen=True)
class Stopped:
    """A child after its fault: its folder, the fault, at which operation, how it ended (exit code, or -9)."""

    place: Path
    fault: str
    operation: int
    name: str
    status: int


def in_child(work: Callable[[], Any]) -> int:
    """Do ``work`` in a forked child; returns DONE, REFUSED (a TesseraError), CRASHED, or minus a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(without_waiting(work), 0)[1])


def without_waiting(work: Callable[[], Any]) -> int:
    """Begin ``work`` in a forked child; returns its process number."""
    pid = os.fork()
    if pid == 0:
        os._exit(_status(work))
    return pid


def _status(work: Callable[[], Any]) -> int:
    try:
        SEEN.clear()
        torch.set_num_threads(1)  # a fork cannot use its parent's OpenMP threads
        work()
    except TesseraError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return CRASHED
    return DONE


def operations(work: Callable[[], Any]) -> list[str]:
    """The durable operations of ``work``, in order."""
    reader, writer = os.pipe()

    def counted() -> None:
        _watch(lambda name, number: os.write(writer, f"{name}\n".encode()) and False, lambda *_: None)
        work()

    status = in_child(counted)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        names = pipe.read().split()
    assert status == DONE, status
    return names


def stopped_everywhere(
    new_place: Callable[[], Path], work: Callable[[Path], Any], faults: tuple[str, ...] = FAULTS, *, every: int = 1
) -> Iterator[Stopped]:
    """One child for every operation and fault; after each the caller looks at what is left.

    Args:
        new_place: a fresh folder to work in.
        work: the work.
        faults: of ``FAULTS``; ``short`` is a disk that silently keeps half of a write.
        every: stop at every n-th operation only, for work that takes long.
    """
    counted = new_place()
    for number, name in enumerate(operations(lambda: work(counted)), start=1):
        for i, fault in enumerate(faults):
            if (number + i) % every == 0 and (fault != "short" or name in WRITES):
                place = new_place()
                doomed = partial(_doomed, partial(work, place), fault, number)
                yield Stopped(place, fault, number, name, in_child(doomed))


def _doomed(work: Callable[[], Any], fault: str, number: int) -> None:
    _watch(lambda _, seen: seen == number, lambda name, arguments: _suffer(fault, name, arguments))
    work()


def _watch(due: Callable[[str, int], bool], suffer: Callable[[str, tuple], Any]) -> None:
    """Replace every primitive, in this process, by one that asks whether the fault is due."""

    def watched(name: str, real: Callable) -> Callable:
        def operation(*arguments: Any) -> Any:
            SEEN["all"] += 1
            return suffer(name, (real, *arguments)) if due(name, SEEN["all"]) else real(*arguments)

        return operation

    for name in durable.PRIMITIVES:
        setattr(durable, name, watched(name, getattr(durable, name)))


def _suffer(fault: str, name: str, call: tuple) -> None:
    real, *arguments = call
    if name in WRITES:
        size, seen = _size(arguments[0]), SEEN["all"]
        real(*arguments)
        if SEEN["all"] == seen:  # else operations within this one wrote, each with its own turn
            _halve(arguments[0], size)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault in REFUSALS:
        raise OSError(REFUSALS[fault], os.strerror(REFUSALS[fault]))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _halve(path: Path, size_before: int) -> None:
    """Cut the last write in half."""
    os.truncate(path, size_before + (_size(path) - size_before) // 2)


class Places:
    """Numbered folders, each a fresh copy of ``beginning``."""

    def __init__(self, folder: Path, beginning: Path | None = None) -> None:
        self.folder, self.beginning, self.n = folder, beginning, 0

    def new(self) -> Path:
        """The next one."""
        self.n += 1
        place = self.folder / f"{self.n:04d}"
        if self.beginning is None:
            place.mkdir(parents=True)
        else:
            shutil.copytree(self.beginning, place)
        return place


def summary(outcomes: list[Stopped]) -> dict[str, int]:
    """Number of outcomes by fault; requires that killed children died and that refusals are TesseraErrors."""
    assert not [each for each in outcomes if each.status == CRASHED], "a refusal that is no TesseraError"
    assert all(each.status == -signal.SIGKILL for each in outcomes if each.fault == "killed")
    by_fault = Counter(each.fault for each in outcomes)
    return {"crash points": len(outcomes), **{f"of them {name}": n for name, n in by_fault.items()}}


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every published file below a folder: no temporary names, no leases."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in files}
    return {
        name: file_sha256(path)
        for path, name in names.items()
        if ".tmp-" not in name and not name.startswith(".leases")
    }


def leftovers(folder: Path) -> list[Path]:
    """Temporary names below a folder."""
    return list(folder.rglob(".tmp-*"))
