"""Threads of a process: how the threads of OpenMP wait, how many compute, and the pool that reads and writes images.

OpenMP's threads wait for work by spinning. Beside other processes they then hold the cores that the last thread of
their own team needs, and every operation takes as long as a turn of the system's scheduler. Imports neither torch nor
numpy: OpenMP reads these settings once, as torch is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from foundation.hardware import allowed_cores, usable_cores

R = TypeVar("R")
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}
"""How OpenMP's threads wait in the commands, as environment variables; ``scripts/bench_threads.py`` compares choices.

GNU's library, which torch uses on Linux, spins ``GOMP_SPINCOUNT`` times, then sleeps: most waits of a training end
while it spins, and a core that others want is soon free. The libraries of LLVM and Intel read ``OMP_WAIT_POLICY``
alone, and sleep at once. Sources: libgomp's manual, section "Environment Variables"; OpenMP 5.2, section 21.1.5.
"""
_HOW_THEY_WAIT = (*WAITING, "KMP_BLOCKTIME", "KMP_LIBRARY")
_NICE = 10
_in_one_thread = False
_set_here: set[str] = set()
_HOW_MANY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")


def prepare_openmp() -> bool:
    """Set how OpenMP's threads wait, and how many there are where processes or a quota share the cores.

    What the user set stays. Processes that this one starts inherit the settings.

    Returns:
        whether it took effect: False where torch is loaded already, and nothing was set.
    """
    if "torch" in sys.modules:
        return False
    if not _set_by_user(_HOW_THEY_WAIT):
        os.environ.update(WAITING)
    if not _set_by_user(_HOW_MANY) and usable_cores() < allowed_cores():
        os.environ["OMP_NUM_THREADS"] = str(usable_cores())
        _set_here.add("OMP_NUM_THREADS")
    return True


def set_here() -> frozenset[str]:
    """Variables that ``prepare_openmp`` has set for this machine alone."""
    return frozenset(_set_here)


def waiting_text() -> str:
    """How OpenMP's threads wait in this process, in words."""
    found = [f"{name}={os.environ[name]}" for name in _HOW_THEY_WAIT if name in os.environ]
    return " ".join(found) or "OpenMP's default: they spin, and slow down beside other processes"


@functools.cache
def image_threads() -> ThreadPoolExecutor:
    """The threads of this process that read, decode and write images: one for each usable core, made at first use.

    All users share them. A task in this pool must not wait for another task in it.
    """
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="images")


def use_one_thread() -> None:
    """Let ``map_in_threads`` of this process compute in the thread that calls it: other processes use other cores."""
    global _in_one_thread
    _in_one_thread = True


def map_in_threads(function: Callable[..., R], *columns: Iterable[Any]) -> list[R]:
    """As ``map``, of columns of equal length, computed by the image threads.

    Raises:
        the first exception, in the order of the calls, once no call is running any more; the rest are not called.
    """
    if _in_one_thread:
        return [function(*each) for each in zip(*columns, strict=True)]
    futures = [image_threads().submit(function, *each) for each in zip(*columns, strict=True)]
    try:
        return [each.result() for each in futures]
    finally:
        wait([each for each in futures if not each.cancel()])


def give_way() -> None:
    """Lower the priority of the calling thread, where a system has such: training goes first."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _set_by_user(names: tuple[str, ...]) -> bool:
    return any(name in os.environ for name in names)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=image_threads.cache_clear)  # threads do not survive a fork
