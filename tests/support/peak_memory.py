"""Growth of resident memory during a piece of work, apart from earlier peaks of the process."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakGrowth:
    """After the block, ``.mib`` has the MiB by which resident memory rose above its value at entry.

    Where the peak cannot be reset (outside Linux), growth below an earlier peak goes unseen.
    """

    mib: float

    def __enter__(self) -> PeakGrowth:
        if STATUS.exists():
            release = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if release is not None:
                release(0)  # freed memory that the process keeps would hide growth
            CLEAR.write_text("5")  # resets the peak
        self._before = peak_mib()
        return self

    def __exit__(self, *exc: object) -> None:
        self.mib = peak_mib() - self._before


def peak_mib() -> float:
    if STATUS.exists():
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
