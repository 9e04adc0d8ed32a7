"""The peak of resident memory while a piece of work runs: of that work, not of what the process did before it."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakGrowth:
    """MiB by which resident memory rose above where it stood at entry: ``.mib``, after the block.

    Where the system cannot forget an earlier peak (not Linux), growth below that peak goes unseen.
    """

    mib: float

    def __enter__(self) -> PeakGrowth:
        if STATUS.exists():
            release = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if release is not None:
                release(0)  # freed memory that the process kept would hide the growth
            CLEAR.write_text("5")  # the peak starts again from what is resident now
        self._before = peak_mib()
        return self

    def __exit__(self, *exc: object) -> None:
        self.mib = peak_mib() - self._before


def peak_mib() -> float:
    if STATUS.exists():
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
