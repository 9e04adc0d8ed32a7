"""Names of files that are being written: they say by which process, so that what a dead one left can be told apart.

A process number means nothing on another machine, after a restart, or in another container; so a name holds a hash of
the host, its boot and its process namespace too, and the time at which the process started, since numbers come again.

They begin and end unlike the final names, so that no pattern that means those (``*.parquet``) takes them in.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
import uuid
from functools import cache
from pathlib import Path

FOREIGN_SECONDS = 24 * 3600.0
"""after so long without a change, what a process of another machine was writing counts as left behind"""
_MARK, _END = ".tmp-", ".part"
_OWNER = re.compile(r"\.tmp-([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{12}-")
_STATE, _START_TIME = 0, 19  # of the fields after the command's name: proc(5), stat, fields 3 and 22
_DEAD = ("Z", "X")  # a zombie has a number and writes nothing; where nobody collects them, they stay for ever


def temporary_name(path: Path) -> Path:
    """A new name beside ``path`` that belongs to this process."""
    pid = os.getpid()
    owner = f"{_place()}-{pid}-{_started(pid) or 0}-{uuid.uuid4().hex[:12]}"
    return path.with_name(f"{_MARK}{owner}-{path.name}{_END}")


def is_temporary(path: Path) -> bool:
    """Whether it is such a name, of any process."""
    return path.name.startswith(_MARK)


def is_left_behind(path: Path) -> bool:
    """Whether no process is going to finish it.

    Its process is no more; or, if that ran on another machine, nothing in it changed for a day. A temporary name that
    does not say whose it is was left by an earlier version of this package.
    """
    match = _OWNER.match(path.name)
    if match is None:
        return True
    place, pid, started = match[1], int(match[2]), int(match[3])
    if place != _place():
        return time.time() - _last_change(path) > FOREIGN_SECONDS
    return not _exists(pid) or (_started(pid) or 0) != started


def _last_change(path: Path) -> float:
    times = [time.time()]
    for each in (path, *path.rglob("*")):
        try:
            times.append(each.lstat().st_mtime)
        except FileNotFoundError:  # being finished, or swept by another process
            return times[0]
    return max(times[1:])


@cache
def _place() -> str:
    """Within which a process number means one process: 12 hexadecimal digits."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        boot = namespace = ""
    return hashlib.sha256(f"{platform.node()}|{boot}|{namespace}".encode()).hexdigest()[:12]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> int | None:
    """When a living process started, in ticks since boot; None where that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STATE] in _DEAD else int(fields[_START_TIME])
