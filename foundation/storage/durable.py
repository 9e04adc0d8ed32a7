"""Durable writes: every operation whose result must survive a crash, enumerated for tests.

The rule: write under a temporary name in the same folder, flush to disk, verify, publish under the final name in one
step, flush the folder. A reader sees nothing or the complete result; a crash leaves at most a temporary name, which
``sweep`` removes once its process has ended.

A temporary name identifies the writing process. A process number is unique on one machine, within one boot, in one
container; the name therefore also holds a hash of host, boot and process namespace, and the start time of the process.
It differs from the final name at both ends, so that patterns such as ``*.parquet`` do not match it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from foundation.errors import StorageError, TesseraError

FOREIGN_SECONDS = 24 * 3600.0
"""a file of a process on another machine counts as left behind after this time without a change"""
_MARK, _END = ".tmp-", ".part"
_OWNER = re.compile(r"\.tmp-([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{12}-")
_STATE, _START_TIME = 0, 19  # of the fields after the command's name: proc(5), stat, fields 3 and 22
_DEAD = ("Z", "X")  # a zombie has a number and writes nothing
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


def temporary_name(path: Path) -> Path:
    """A new name beside ``path`` that belongs to this process."""
    pid = os.getpid()
    owner = f"{_host()}-{pid}-{_started(pid) or 0}-{uuid.uuid4().hex[:12]}"
    return path.with_name(f"{_MARK}{owner}-{path.name}{_END}")


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
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        boot = namespace = ""
    return hashlib.sha256(f"{platform.node()}|{boot}|{namespace}".encode()).hexdigest()[:12]


def _exists(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # of another user
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _started(pid: int) -> int | None:
    """When a living process started, in ticks since boot; None where that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STATE] in _DEAD else int(fields[_START_TIME])


def publish_file(path: Path, write: Callable[[Path], None], verify: Callable[[Path], None] | None = None) -> None:
    """Create ``path`` from what ``write`` puts at a temporary name. The first writer wins.

    Args:
        path: the final name. If it exists already, the new content must be identical to it.
        write: writes the complete content to its path.
        verify: reads the temporary file back and raises if it is not what was meant. None leaves the
            check to ``write``, as ``write_bytes`` does.

    Raises:
        StorageError: the disk refused, or ``path`` exists with other content.
    """
    with writing(path):
        temporary = temporary_name(path)
        try:
            _write(temporary, write)
            _fsync(temporary)
            _require_meant(temporary, path, verify)
            try:
                _take_name(temporary, path)
            except FileExistsError:
                if file_sha256(temporary) != file_sha256(path):
                    raise StorageError(
                        "exists already with other content",
                        field=str(path),
                        fix="the same input gave two results: move that file away and run the command again",
                    ) from None
            _fsync(path.parent)
        finally:
            _discard(temporary)


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, replacing what was there in one step.

    Raises:
        StorageError: the disk refused; what was there before is untouched.
    """
    with writing(path):
        temporary = temporary_name(path)
        try:
            write_bytes(temporary, content)
            _fsync(temporary)
            _rename(temporary, path)
            _fsync(path.parent)
        finally:
            _discard(temporary)


def publish_folder(path: Path, fill: Callable[[Path], None], verify: Callable[[Path], None] | None = None) -> None:
    """Create the folder ``path`` with what ``fill`` puts into a temporary one, all or nothing.

    ``fill`` should write with ``write_file`` and ``write_bytes``.

    Raises:
        StorageError: the disk refused, or ``path`` exists.
    """
    if path.exists():
        raise StorageError("exists already and is never overwritten", field=str(path), fix="choose another folder")
    with writing(path):
        temporary = temporary_name(path)
        try:
            _make_folder(temporary)
            fill(temporary)
            for each in sorted(temporary.rglob("*")):
                _fsync(each)
            _fsync(temporary)
            _require_meant(temporary, path, verify)
            _rename(temporary, path)
            _fsync(path.parent)
        finally:
            _discard(temporary)


def remove_folder(path: Path) -> None:
    """Remove a published folder: its name disappears in one step, then its content.

    Raises:
        StorageError: the disk refused; the folder is complete under its name, or gone from it.
    """
    with writing(path):
        doomed = temporary_name(path)
        _rename(path, doomed)
        _fsync(path.parent)
        _discard(doomed)


def append_line(path: Path, line: str) -> None:
    """Append one line of text. A crash may tear the last line of the file, nothing before it."""
    with writing(path):
        _append(path, f"{line}\n".encode())


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` make a file at a (temporary) path; the caller verifies it."""
    _write(path, write)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to a (temporary) path, and read it back.

    Raises:
        StorageError: what was read back is something else.
    """

    def write(target: Path) -> None:
        target.write_bytes(content)

    _write(path, write)
    if path.read_bytes() != content:
        raise lost(path)


def copy_files(source: Path, target: Path) -> None:
    """Copy the plain files below a folder into a (temporary) one, and compare each with its copy.

    Raises:
        StorageError: what was read back is something else.
    """
    for path in sorted(each for each in source.rglob("*") if each.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _write(copy, lambda target, path=path: shutil.copyfile(path, target))  # type: ignore[misc]
        if file_sha256(copy) != file_sha256(path):
            raise lost(copy)


def lost(path: Path) -> StorageError:
    """The error for a file that does not hold what was written to it."""
    return StorageError(
        "what was read back differs from what was written",
        field=str(path),
        fix="check the disk, then run the same command again; what was complete is untouched",
    )


def sweep(folder: Path) -> None:
    """Remove what dead processes left in ``folder``; the temporary files of live ones stay."""
    if not folder.is_dir():
        return
    for each in folder.iterdir():
        if is_temporary(each) and is_left_behind(each):
            _discard(each)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_free_space(folder: Path, n_bytes: int, purpose: str) -> None:
    """Raise ``StorageError`` unless the disk of ``folder`` has ``n_bytes`` free."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if free < n_bytes:
        raise StorageError(
            f"the disk is too full for {purpose}",
            field=str(folder),
            found=f"{free / 2**20:.1f} MiB free",
            expected=f"at least {n_bytes / 2**20:.1f} MiB",
            fix="free some space and run the same command again; it continues where it stopped",
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the parent folder of ``path``; turn an ``OSError`` into a ``StorageError`` with a fix."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"could not be written ({error.strerror or error})"
        fix = "free some space" if full else "check the folder's permissions and the disk"
        raise StorageError(
            what, field=str(path), fix=f"{fix} and run the same command again; what was complete is untouched"
        ) from error


def _require_meant(temporary: Path, path: Path, verify: Callable[[Path], None] | None) -> None:
    """Verify a temporary file; any error of a reader of its format means that the write failed."""
    try:
        if verify is not None:
            verify(temporary)
    except (OSError, TesseraError):
        raise
    except Exception as error:
        raise lost(path) from error


def _take_name(temporary: Path, path: Path) -> None:
    """Give ``temporary`` its final name.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        _link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if path.exists():
            raise FileExistsError(str(path)) from None
        _rename(temporary, path)  # FAT and some network disks have no links; a race is then of equal contents


def _discard(path: Path) -> None:
    """Remove a temporary file or folder; what cannot be removed now is left to ``sweep``."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            _unlink(path)


# The primitive operations, one function each: tests replace them to stop a process at every one in turn.
PRIMITIVES = ("_make_folder", "_write", "_append", "_fsync", "_link", "_rename", "_unlink", "_remove_tree")


def _make_folder(path: Path) -> None:
    path.mkdir()


def _write(path: Path, write: Callable[[Path], None]) -> None:
    write(path)


def _append(path: Path, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FOLDER_FLUSH):  # some network disks flush no folders
            raise
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    os.link(source, target)


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
