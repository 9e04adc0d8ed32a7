"""Steps of streams that workers of a Ray cluster open by name."""

from __future__ import annotations

import os
import time

import torch

from foundation.errors import DataError
from pipeline.engines.stream import Step, Stream


def doubling(seconds: float = 0.0) -> Stream:
    """A number => twice the number plus one, the process that computed it, and its threads."""
    return Stream("doubling", _Opener("twice", seconds), read=_Opener("same", 0), finish=_Opener("plus_one", 0))


def refusing(number: int) -> Stream:
    """Refuses one number."""
    return Stream("refusing", _Opener("refuse", number))


def failing() -> Stream:
    """Fails with an exception that is nobody's refusal."""
    return Stream("failing", _Opener("fail", 0))


class _Opener:
    def __init__(self, name: str, argument: float | str) -> None:
        self.name, self.argument = name, argument

    def __call__(self) -> Step:
        return getattr(self, self.name)

    def same(self, number: int) -> int:
        return number

    def twice(self, number: int) -> tuple[int, int, int]:
        time.sleep(float(self.argument))
        return 2 * number, os.getpid(), torch.get_num_threads()

    def plus_one(self, found: tuple[int, int, int]) -> tuple[int, int, int]:
        return found[0] + 1, found[1], found[2]

    def refuse(self, number: int) -> int:
        DataError.unless(number != self.argument, "is refused", field="number", found=number, fix="give another")
        return number

    def fail(self, number: int) -> int:
        raise ZeroDivisionError(f"{number} was too much")
