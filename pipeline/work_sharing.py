"""Work shared among processes that join, leave and die at any time.

A lease is a file for each piece of work that some process has begun. Leases only save double work: results are
published all or nothing, the first writer wins and the second must have made the same, so that no result depends on a
lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from foundation.config import differences, require
from foundation.errors import ConfigError, StorageError
from foundation.storage import durable
from foundation.storage.names import is_left_behind, temporary_name
from foundation.storage.places import Place
from foundation.storage.serialization import json_text, parse_json

HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""a lease that was not renewed for this time is given up"""
POLL_SECONDS = 0.5
SAID_AFTER_S = 30.0
_SAID_AGAIN = 4
"""a wait is said again when it is this many times as long"""
_SHARES = "i/N with i from 0 to N - 1"


@dataclass(frozen=True)
class Holder:
    """Holder of a lease.

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
    """The leases in one folder, which the processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def claim(self, work: str) -> Iterator[bool]:
        """Try to take a piece of work while the context lasts; yields whether it was taken.

        Where no lease can be written, the work is taken.
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
                if owner in path.read_text(
                    encoding="utf-8"
                ):  # else another process has given it up for us and taken it
                    path.unlink()

    def holders(self) -> list[Holder]:
        """All present holders of a lease."""
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
                with open(path, "x", encoding="utf-8") as file:
                    file.write(content)
                return True
            except FileExistsError:
                holder = self._holder(path)
                if holder is not None and holder.alive:
                    return False
                with contextlib.suppress(OSError):
                    path.unlink()
            except OSError:
                return True
        return False

    def _holder(self, path: Path) -> Holder | None:
        try:
            seconds, owner = self._now() - path.stat().st_mtime, ""
        except OSError:
            return None
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
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


class Piece(Protocol):
    """A piece of work."""

    @property
    def name(self) -> str:
        """Different for each piece, and usable as a file name."""
        ...


Work = TypeVar("Work", bound=Piece)


@dataclass(frozen=True)
class Part:
    """Share ``index`` of ``count`` of some work: pieces ``index``, ``index + count``, ...

    Raises:
        ConfigError: an index outside 0..count - 1.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.index < self.count, "part", f"{self.index}/{self.count}", _SHARES)

    @classmethod
    def parse(cls, text: str, field: str = "part") -> Part:
        """Read ``i/N``, the value of an option ``field``.

        Raises:
            ConfigError: it is something else.
        """
        index, _, count = text.partition("/")
        numbers, expected = index.strip().isdecimal() and count.strip().isdecimal(), f"{_SHARES}, e.g. 0/4"
        right = numbers and int(index) < int(count)
        ConfigError.unless(right, "is not a part of the work", field=field, found=repr(text), expected=expected)
        return cls(int(index), int(count))

    def within(self, index: int, count: int) -> Part:
        """The share of process ``index`` of ``count`` of this part."""
        return Part(self.index * count + index, self.count * count)

    def indices(self, n: int) -> range:
        """The part's own pieces of 0..n - 1."""
        return range(self.index, n, self.count)

    def order(self, n: int) -> list[int]:
        """All of 0..n - 1: the part's own first, then the other parts' from the next part on, each from its end.

        Who helps another so meets it once: without leases, they would else do the same piece one after the other.
        """
        turns = ((self.index + shift) % self.count for shift in range(1, self.count))
        return [*self.indices(n), *(i for turn in turns for i in reversed(range(turn, n, self.count)))]


@dataclass(frozen=True)
class SharedWork(Generic[Work]):
    """Pieces of work, and how they are done.

    Attributes:
        pieces: in order.
        leases: of the processes that work on them; None where they share no disk: every piece is free.
        is_done: whether a piece is done, by any process.
        do: does a piece. Two processes may do the same piece at the same time.
        seen: called with each piece that another process has done.
        idle: called repeatedly while waiting for others; what it raises ends the wait.
    """

    pieces: Sequence[Work]
    leases: Leases | None
    is_done: Callable[[Work], bool]
    do: Callable[[Work], None]
    seen: Callable[[Work], None] = lambda piece: None
    idle: Callable[[], None] = lambda: None

    def take_part(self, part: Part, *, wait: bool) -> list[Work]:
        """Do every piece that is not done and that no other process is doing.

        A wait is said on stderr, with the processes that it is for: after ``SAID_AFTER_S``, then seldom. It has no end
        while one of them lives, and none is waited for that does not.

        Args:
            part: which pieces to begin with.
            wait: stay until everything is done, and take over what others give up.

        Returns:
            The pieces that others are still doing; none after ``wait``.
        """
        todo, waiting = [self.pieces[i] for i in part.order(len(self.pieces))], _Wait(self.leases)
        while True:
            todo = [piece for piece in todo if not self._settle(piece)]
            todo = [piece for piece in todo if not self._is_seen(piece)]  # so that the last to end finds all done
            if not todo or not wait:
                return todo
            self.idle()
            waiting.say([piece.name for piece in todo])
            time.sleep(POLL_SECONDS)

    def _settle(self, piece: Work) -> bool:
        """Do a piece unless it is done; False if another process is at it."""
        if self._is_seen(piece):
            return True
        claim = contextlib.nullcontext(True) if self.leases is None else self.leases.claim(piece.name)
        with claim as ours:
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


class _Wait:
    """A wait for other processes, which says for whom it is."""

    def __init__(self, leases: Leases | None) -> None:
        self._leases, self._began, self._pause = leases, time.monotonic(), SAID_AFTER_S

    def say(self, names: Sequence[str]) -> None:
        """Say it when it is time to.

        Args:
            names: of the pieces of work that are waited for.
        """
        waited = time.monotonic() - self._began
        if waited < self._pause or self._leases is None:
            return
        self._pause = _SAID_AGAIN * waited
        for each in self._leases.holders():
            if each.work in names:
                who = f"process {each.pid} on {each.host}, last seen {each.seconds:.0f} s ago"
                print(f"waiting for {each.work} since {waited:.0f} s: {who}, works on it", file=sys.stderr)


def leases_of(place: Place, name: str) -> Leases | None:
    """The leases of the processes that work on a place; None where they share no disk."""
    return None if place.shared is None else Leases(place.shared / name)


def write_plan(place: Place, name: str, make: Callable[[], bytes]) -> None:
    """Write the plan of shared work into its place, unless another process has written one.

    The caller compares its own plan with the one that is there.

    Args:
        place: of the work.
        name: of the plan.
        make: gives its content.

    Raises:
        StorageError: the disk refused.
        RemoteError: the store refused.
    """
    if place.exists(name):
        return
    place.sweep()
    content = make()
    try:
        place.publish_file(name, lambda target: durable.write_bytes(target, content))
    except StorageError:
        if not place.exists(name):
            raise  # else: another process was first


def claim_place(place: Place, name: str, plan: dict[str, Any]) -> None:
    """Write a plan into its place, or refuse one that was begun with another plan.

    Raises:
        ConfigError: naming everything that differs.
        StorageError: the disk refused.
        RemoteError: the store refused.
    """
    write_plan(place, name, lambda: json_text(plan, indent=1))
    fix = "choose another folder"
    rows = differences(parse_json(place.find(name) or b"", (), f"{place.shown}/{name}", fix=fix), plan)
    if rows:
        shown = "".join(f"\n    {name}: the folder has {there!r}, this command {new!r}" for name, there, new in rows)
        fix = "give the same settings, or another folder"
        raise ConfigError(f"was begun with other settings; they differ in:{shown}", field=place.shown, fix=fix)
