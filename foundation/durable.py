"""Every operation whose result must survive a crash goes through this module, so that tests can enumerate them.

The rule: write under a temporary name in the same folder, flush to disk, verify, publish under the final name in one
step, flush the folder. A reader sees either nothing or the whole; a crash leaves at most a temporary name, which
``sweep`` removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from foundation.errors import StorageError

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}-")


def publish_file(path: Path, write: Callable[[Path], None], verify: Callable[[Path], None] | None = None) -> None:
    """Create ``path`` from what ``write`` puts at a temporary name. The first writer wins.

    Args:
        path: the final name. If it exists already, the new content must be identical to it.
        write: writes the whole content to the path it is given.
        verify: reads the temporary file back and raises if it is not what was meant.

    Raises:
        StorageError: the disk refused, or ``path`` exists with other content.
    """
    with writing(path):
        temporary = _temporary_name(path)
        try:
            write(temporary)
            _fsync(temporary)
            if verify is not None:
                verify(temporary)
            try:
                _link(temporary, path)
            except FileExistsError:
                if file_sha256(temporary) != file_sha256(path):
                    raise StorageError(
                        "exists already with other content",
                        field=str(path),
                        fix="the same input gave two results: move that file away and run the command again",
                    ) from None
            _fsync(path.parent)
        finally:
            _unlink(temporary)


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, replacing what was there in one step."""
    with writing(path):
        temporary = _temporary_name(path)
        try:
            write_bytes(temporary, content)
            _fsync(temporary)
            _rename(temporary, path)
            _fsync(path.parent)
        finally:
            _unlink(temporary)


def publish_folder(path: Path, fill: Callable[[Path], None], verify: Callable[[Path], None] | None = None) -> None:
    """Create the folder ``path`` with what ``fill`` puts into a temporary one, all or nothing.

    Raises:
        StorageError: the disk refused, or ``path`` exists.
    """
    if path.exists():
        raise StorageError("exists already and is never overwritten", field=str(path), fix="choose another folder")
    with writing(path):
        temporary = _temporary_name(path)
        try:
            temporary.mkdir(parents=True)
            fill(temporary)
            for each in sorted(temporary.rglob("*")):
                _fsync(each)
            _fsync(temporary)
            if verify is not None:
                verify(temporary)
            _rename(temporary, path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a published folder: it disappears under its name in one step, then its content goes."""
    doomed = _temporary_name(path)
    _rename(path, doomed)
    _fsync(path.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def append_line(path: Path, line: str) -> None:
    """Append one line of text. A crash may tear the last line of the file, nothing before it."""
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to a (temporary) path."""
    with open(path, "wb") as file:
        file.write(content)


def sweep(folder: Path) -> None:
    """Remove temporary names that a crashed process left in ``folder``; only when no other process writes there."""
    if not folder.is_dir():
        return
    for each in folder.iterdir():
        if _TEMPORARY.match(each.name):
            shutil.rmtree(each) if each.is_dir() else each.unlink()


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
    """Make the parent folder of ``path``; turn an operating system's refusal into an error with a remedy."""
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


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")


# The primitive operations, one function each: tests replace them to stop a process at every one in turn.


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    os.link(source, target)


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
