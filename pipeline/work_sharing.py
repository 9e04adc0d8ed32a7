"""Pieces of work shared among processes that join, leave and die at any time.

Who works on what: a file for each piece of work that some process has begun.

Leases only save double work. Whatever is made is published all or nothing, the first writer wins and the second must
have made the same, so that nothing depends on a lease being there, or being right.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from foundation.config import require
from foundation.errors import ConfigError
from foundation.storage.durable import is_left_behind, temporary_name

HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""a lease that was not renewed for so long is given up, whoever had it"""


@dataclass(frozen=True)
class Holder:
    """Who has a lease.

    Attributes:
        work: name of the piece of work.
        host, pid: of the process.
        seconds: since it was renewed last, by the clock of the disk.
        alive: whether the process may still be working.
    """

    work: str
    host: str
    pid: int
    seconds: float
    alive: bool


class Leases:
    """The leases in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def claim(self, work: str) -> Iterator[bool]:
        """Try to take a piece of work for as long as the context lasts; says whether it was taken.

        Where no lease can be written, the work is taken all the same.
        """
        path = self.folder / f"{work}.json"
        owner = temporary_name(path).name
        if not self._take(path, owner):
            yield False
            return
        ended = threading.Event()
        beating = threading.Thread(target=_renew, args=(path, ended), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            ended.set()
            beating.join()
            with contextlib.suppress(OSError):
                if owner in path.read_text():  # else another process has given it up for us and taken it
                    path.unlink()

    def holders(self) -> list[Holder]:
        """Everybody who has a lease now."""
        found = [self._holder(path) for path in sorted(self.folder.glob("*.json"))]
        return [each for each in found if each is not None]

    def clear(self) -> None:
        """Remove all leases, when nothing is left to do."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _take(self, path: Path, owner: str) -> bool:
        content = json.dumps({"owner": owner, "host": platform.node(), "pid": os.getpid()})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return True
        for _ in range(2):
            try:
                with open(path, "x") as file:
                    file.write(content)
            except FileExistsError:
                holder = self._holder(path)
                if holder is not None and holder.alive:
                    return False
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            except OSError:
                return True
            return True
        return False

    def _holder(self, path: Path) -> Holder | None:
        try:
            seconds, owner = self._now() - path.stat().st_mtime, ""
        except OSError:
            return None
        try:
            saved = json.loads(path.read_text())
            host, pid, owner = str(saved["host"]), int(saved["pid"]), str(saved["owner"])
        except (OSError, ValueError, KeyError, TypeError):  # being written, or torn by a crash
            host, pid = "unknown", 0
        alive = seconds < SILENT_SECONDS and not (owner and is_left_behind(path.with_name(owner)))
        return Holder(path.stem, host, pid, seconds, alive)

    def _now(self) -> float:
        """By the clock of the disk, which machines with clocks of their own share."""
        probe = temporary_name(self.folder / "clock")
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _renew(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


POLL_SECONDS = 0.5


class Piece(Protocol):
    """A piece of work."""

    @property
    def name(self) -> str:
        """Different for each piece, and usable as a file name."""
        ...


Work = TypeVar("Work", bound=Piece)


@dataclass(frozen=True)
class Part:
    """What one of ``count`` processes does first: pieces ``index``, ``index + count``, ... It then helps with the rest.

    Raises:
        ConfigError: an index outside 0..count - 1.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        sound = 0 <= self.index < self.count
        require(sound, "--shard", f"{self.index}/{self.count}", "i/N with i from 0 to N - 1")

    @classmethod
    def parse(cls, text: str) -> Part:
        """``i/N`` as on the command line.

        Raises:
            ConfigError: it is something else.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.strip().isdecimal() and count.strip().isdecimal()):
            raise ConfigError("is not a part of the work", field="--shard", found=repr(text),
                              expected="i/N with i from 0 to N - 1, e.g. 0/4")  # fmt: skip
        return cls(int(index), int(count))

    def within(self, index: int, count: int) -> Part:
        """Of this part, the part of process ``index`` of ``count``."""
        return Part(self.index * count + index, self.count * count)

    def order(self, n: int) -> list[int]:
        """All of 0..n - 1: one's own first, then those of the others from the next one on."""
        turns = ((self.index + shift) % self.count for shift in range(self.count))
        return [i for turn in turns for i in range(turn, n, self.count)]


@dataclass(frozen=True)
class SharedWork(Generic[Work]):
    """What there is to do, and how.

    Attributes:
        pieces: in order.
        leases: of whoever works on them.
        is_done: whether a piece is done, by whomever.
        do: does it. Two processes may do the same piece at the same time.
        seen: told of each piece that turns out to be done by others.
        idle: called again and again while there is nothing to do but wait; what it raises ends the wait.
    """

    pieces: Sequence[Work]
    leases: Leases
    is_done: Callable[[Work], bool]
    do: Callable[[Work], None]
    seen: Callable[[Work], None] = lambda piece: None
    idle: Callable[[], None] = lambda: None

    def take_part(self, part: Part, *, wait: bool) -> list[Work]:
        """Do what is to do and what nobody else is doing.

        Args:
            part: what to begin with.
            wait: stay until everything is done, and take over what others give up.

        Returns:
            What others are still doing; nothing after ``wait``.
        """
        todo = [self.pieces[i] for i in part.order(len(self.pieces))]
        while True:
            todo = [piece for piece in todo if not self._settle(piece)]
            todo = [piece for piece in todo if not self._is_seen(piece)]  # so that the last to end finds all done
            if not todo or not wait:
                return todo
            self.idle()
            time.sleep(POLL_SECONDS)

    def _settle(self, piece: Work) -> bool:
        """Do a piece unless it is done; False if another process is at it."""
        if self._is_seen(piece):
            return True
        with self.leases.claim(piece.name) as ours:
            if not ours:
                return False
            if not self._is_seen(piece):
                self.do(piece)
        return True

    def _is_seen(self, piece: Work) -> bool:
        done = self.is_done(piece)
        if done:
            self.seen(piece)
        return done
