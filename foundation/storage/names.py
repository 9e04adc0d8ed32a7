"""Names of files: temporary ones, which identify the writing process, and those that every system can have.

A process number is unique on one machine, within one boot, in one container; a temporary name therefore also holds a
hash of host, boot and process namespace, and the start time of the process. It differs from the final name at both
ends, so that patterns such as ``*.parquet`` do not match it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import time
import uuid
from functools import cache
from pathlib import Path

FOREIGN_SECONDS = 24 * 3600.0
"""a file of a process on another machine counts as left behind after this time without a change"""
MOST_NAME_BYTES = 255
"""of a file name, on every common file system"""
_MARK, _END = ".tmp-", ".part"
_OWNER = re.compile(r"\.tmp-([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{12}-")
_STATE, _START_TIME = 0, 19  # of the fields after the command's name: proc(5), stat, fields 3 and 22
_DEAD = ("Z", "X")  # a zombie has a number and writes nothing
_FORBIDDEN = frozenset('/\\:*?"<>|') | {chr(i) for i in range(32)}
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)


def is_portable(name: str) -> bool:
    r"""Whether a file or folder can have this name on Linux, macOS and Windows.

    Windows takes no ``\ : * ? " < > |``, no dot or space at the end, and keeps names such as CON, NUL.png or com1 for
    devices.
    """
    fits = 0 < len(name.encode(errors="surrogatepass")) <= MOST_NAME_BYTES
    return fits and not set(name) & _FORBIDDEN and name[-1] not in ". " and _DEVICES.fullmatch(name) is None


def temporary_name(path: Path) -> Path:
    """A new name beside ``path`` that belongs to this process; of a long name it has the end."""
    pid = os.getpid()
    start = f"{_MARK}{_host()}-{pid}-{_started(pid) or 0}-{uuid.uuid4().hex[:12]}-"
    room = MOST_NAME_BYTES - len(start) - len(_END)
    return path.with_name(f"{start}{os.fsencode(path.name)[-room:].decode('utf-8', 'ignore')}{_END}")


def is_temporary(path: Path) -> bool:
    """Whether it is the temporary name of any process."""
    return path.name.startswith(_MARK)


def is_left_behind(path: Path) -> bool:
    """Whether no process will finish it: its process has ended or, on another machine, nothing changed for a day.

    A temporary name without a process is from an earlier version of this package.
    """
    match = _OWNER.match(path.name)
    if match is None:
        return True
    host, pid, started = match[1], int(match[2]), int(match[3])
    if host != _host():
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
def _host() -> str:
    """Hash of the host, boot and namespace in which a process number is unique: 12 hexadecimal digits."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        boot = namespace = ""
    return hashlib.sha256(f"{platform.node()}|{boot}|{namespace}".encode()).hexdigest()[:12]


def _exists(pid: int) -> bool:
    if os.name == "nt":  # where os.kill with any number ends the process, or interrupts every process of the console
        import psutil

        return bool(psutil.pid_exists(pid))
    with contextlib.suppress(PermissionError):  # of another user
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):  # the second: a number of another system
            return False
    return True


def _started(pid: int) -> int | None:
    """When a living process started: ticks since boot on Linux, else 1/100 s; None where that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if Path("/proc/self/stat").exists() else _started_elsewhere(pid)
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STATE] in _DEAD else int(fields[_START_TIME])


def _started_elsewhere(pid: int) -> int | None:
    """On a system without /proc."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 100)
    except (psutil.Error, OSError):
        return None
