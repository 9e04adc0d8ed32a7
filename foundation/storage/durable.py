"""Durable writes: every operation whose result must survive a crash, enumerated for tests.

The rule: write under a temporary name in the same folder, flush to disk, verify, publish under the final name in one
step, flush the folder. A reader sees nothing or the complete result; a crash leaves at most a temporary name, which
``sweep`` removes once its process has ended.

Windows opens no folders, so that none is flushed there; it renames no file that is open, which another program's short
look at a new file makes common, so that renaming and removing are tried for ``PATIENCE_SECONDS``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from foundation.errors import StorageError, TesseraError
from foundation.storage.names import is_left_behind, is_temporary, temporary_name

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE_SECONDS = 2.0
"""how long Windows is asked again to rename or remove what another program has open"""
_NO_HARD_LINKS = (
    *(errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV),
    errno.EINVAL,  # Windows, on a disk of another format than NTFS
)
_LONGEST_ON_WINDOWS = 259
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


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

    ``fill`` should write with ``write_file``, ``write_blocks`` and ``write_bytes``.

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


def replace_folder(path: Path, fill: Callable[[Path], None], verify: Callable[[Path], None] | None = None) -> None:
    """``publish_folder`` over a folder that may exist: the old one stays until the new one is complete on the disk.

    Raises:
        StorageError: the disk refused; the old folder is there under its name unless the new one is.
    """
    aside = path.with_name(f"{path.name}-new")
    if aside.exists():
        remove_folder(aside)
    publish_folder(aside, fill, verify)
    if path.exists():
        remove_folder(path)
    rename_folder(aside, path)


def rename_folder(path: Path, target: Path) -> None:
    """Give a folder another name beside it, in one step.

    Raises:
        StorageError: the disk refused, or ``target`` exists.
    """
    if target.exists():
        raise StorageError("exists already and is never overwritten", field=str(target), fix="move it away")
    with writing(target):
        _rename(path, target)
        _fsync(target.parent)


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


def remove_file(path: Path) -> None:
    """Remove a file, for good.

    Raises:
        StorageError: the disk refused.
    """
    with writing(path):
        _unlink(path)
        _fsync(path.parent)


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


def write_blocks(path: Path, blocks: Iterable[bytes | memoryview]) -> str:
    """Write blocks of bytes, one after the other, to a (temporary) path; the caller verifies the file.

    Returns:
        SHA-256 (hex) of the bytes, computed while they are written.

    Raises:
        StorageError: the disk refused.
    """
    total = hashlib.sha256()

    def write(target: Path) -> None:
        with open(target, "wb") as file:
            for block in blocks:
                total.update(block)
                file.write(block)

    with writing(path):
        _write(path, write)
    return total.hexdigest()


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
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        what = "the disk is full" if full else f"could not be written ({error.strerror or error})"
        fix = "free some space" if full else _remedy(path, error)
        raise StorageError(
            what, field=str(path), fix=f"{fix} and run the same command again; what was complete is untouched"
        ) from error


def _remedy(path: Path, error: OSError) -> str:
    if os.name == "nt" and len(str(temporary_name(path.absolute()))) > _LONGEST_ON_WINDOWS:
        return (
            f"choose a folder with a shorter path (Windows takes {_LONGEST_ON_WINDOWS} characters), or allow long paths"
        )
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if os.name == "nt" and isinstance(error, PermissionError):
        return "close the programs that have it open, check the folder's permissions"
    return "check the folder's permissions and the disk"


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
    windows, is_folder = os.name == "nt", path.is_dir()
    if windows and is_folder:
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # Windows flushes only what may be written
    try:
        _flush(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in _NO_FOLDER_FLUSH):  # some network disks flush no folders
            raise
    finally:
        os.close(descriptor)


def _flush(descriptor: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS, where fsync leaves the content in the disk's own memory
        with contextlib.suppress(OSError):  # a network disk
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _link(source: Path, target: Path) -> None:
    if not hasattr(os, "link"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    os.link(source, target)


def _rename(source: Path, target: Path) -> None:
    _patiently(lambda: source.replace(target))


def _unlink(path: Path) -> None:
    _patiently(lambda: path.unlink(missing_ok=True))


def _patiently(act: Callable[[], object]) -> None:
    """Do it; on Windows again and again while it is refused, up to ``PATIENCE_SECONDS``."""
    end = time.monotonic() + (PATIENCE_SECONDS if os.name == "nt" else 0)
    while True:
        try:
            act()
            return
        except PermissionError:
            if time.monotonic() >= end:
                raise
        time.sleep(PATIENCE_SECONDS / 100)


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
