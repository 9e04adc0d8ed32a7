"""Pieces of work shared among processes that join, leave and die at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from foundation.config import require
from foundation.errors import ConfigError
from pipeline.leases import Leases

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
