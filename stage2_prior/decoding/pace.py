"""How many codes a pass guesses ahead: as many as are the fastest here, found by trying."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator

import torch

from stage2_prior.prior import PriorModel

_SIZES = (1, 2, 4, 8)
"""windows that are tried; more hold more wrong guesses"""
_TRIED_PASSES = 5
"""passes of each size that are timed, after one that is not"""
_LEAST_GAIN = 1.1
"""in codes a second, for which a window is taken: timings of a few passes differ by some percent"""
_FEWEST_STEPS = 64
"""of an image, for which trying pays"""
_MOST_ROWS = {"cpu": 8, "other": 32}
"""with more rows a pass over a window takes as many times as long"""


class Pace:
    """Sizes of the windows of a batch, one after another.

    Codes do not depend on them, so that a choice by time changes no image.

    Args:
        prior: that is sampled from; it keeps what was found for as many rows, and what the tries have found so far.
        n_rows: of the batch, the unconditional ones included.
        window: the size to take; None tries.
        guesses_well: whether most guesses are right, as for Gumbel noise and for the likeliest codes.
    """

    def __init__(self, prior: PriorModel, n_rows: int, window: int | None, *, guesses_well: bool) -> None:
        self._device, self._key, self._found = prior.head.weight.device, (n_rows, guesses_well), prior.programs
        on_cpu = self._device.type == "cpu"
        most = _MOST_ROWS["cpu" if on_cpu else "other"]
        if window is None and (n_rows > most or prior.n_steps < _FEWEST_STEPS or (on_cpu and not guesses_well)):
            window = 1  # by the inverse CDF a fifth of the passes is saved, which a GPU alone has for nothing
        found = ("window", *self._key)
        self.size = self._found.get(found, 1) if window is None else window
        self._tries = None if window is not None or found in self._found else self._try_all()
        if self._tries is not None:
            next(self._tries)

    def took(self, n_codes: int) -> None:
        """Say how many codes the latest pass found; sets the next ``size``."""
        if self._tries is None:
            return
        try:
            self._tries.send(n_codes)
        except StopIteration:
            self._tries = None

    def _try_all(self) -> Generator[None, int, None]:
        """Each size for some passes; then the one with the most codes a second. What one image has no codes left for,
        the next one tries.

        The least time of a pass counts: other work on the machine makes some passes several times as long.
        """
        speeds: dict[int, float] = self._found.setdefault(("speeds", *self._key), {})
        for size in _SIZES[len(speeds) :]:
            self.size = size
            yield  # a first pass, which may build something
            times, n_codes = [self._now()], 0
            for _ in range(_TRIED_PASSES):
                n_codes += yield
                times.append(self._now())
            speeds[size] = n_codes / _TRIED_PASSES / min(end - begin for begin, end in itertools.pairwise(times))
        best = max(speeds, key=speeds.__getitem__)
        self.size = self._found["window", *self._key] = best if speeds[best] > _LEAST_GAIN * speeds[1] else 1

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
