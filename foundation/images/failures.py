"""Unusable images, each with a code for programs and a reason for people, and safe reading of untrusted files.

Only plain files of limited size are read, without blocking on pipes. A failure of the storage that may pass is tried
again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import DataError
from foundation.storage.retrying import retried

FAILURE_CODES = {
    "unreadable": "empty, damaged, truncated, or not an image of a known format",
    "too_large": "more pixels, longer sides, a longer shape or more bytes than are accepted",
    "pixel_format": "a pixel format whose range of values is not defined",
    "vanished": "listed when the images were planned, and no longer there",
    "forbidden": "the permission to read it is missing",
    "not_a_file": "a pipe, device, socket, folder or symbolic link",
    "changed": "is not the image that the run began with",
    "duplicate": "held out, with the pixels of a training image",
    "unavailable": "the storage or the network did not deliver it",
    "missing": "named by the data, and not there",
    "remote": "an address in a network, from which nothing is fetched",
}
"""what each code means"""
MAX_FILE_BYTES = 1 << 30
_KINDS = {
    **{stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"},
    **dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device"),
}


class BadImage(DataError):
    """One image that cannot be used.

    Args:
        code: a key of ``FAILURE_CODES``.
        what, details: as for ``DataError``.
    """

    def __init__(self, code: str, what: str, **details: object) -> None:
        assert code in FAILURE_CODES, code
        super().__init__(what, **details)  # type: ignore[arg-type]
        self.code = code


@dataclass(frozen=True)
class Failure:
    """An image that could not be used.

    Attributes:
        image_id: which.
        reason: in one line, the same every time.
        code: a key of ``FAILURE_CODES``.
    """

    image_id: str
    reason: str
    code: str = "unreadable"


def failure_of(image_id: str, error: Exception) -> Failure:
    """The entry for an image whose reading or decoding raised ``error``."""
    code = error.code if isinstance(error, BadImage) else "unreadable"
    named = isinstance(error, (DataError, OSError)) and str(error)
    text = str(error) if named else f"{type(error).__name__}: {error}"
    return Failure(image_id, "; ".join(line.strip() for line in text.splitlines()), code)


@contextlib.contextmanager
def named(image_id: str) -> Iterator[None]:
    """Let an image's failure name the image; for reading that lists no failures.

    Raises:
        DataError: what happened to which image, and what to do.
    """
    try:
        yield
    except (DataError, OSError) as error:
        fix = "make it readable again"
        raise DataError(f"cannot be read: {failure_of(image_id, error).reason}", field=image_id, fix=fix) from error


def read_plain_file(path: Path, *, follow_links: bool = False) -> bytes:
    """The bytes of a plain file.

    Args:
        path: of the file.
        follow_links: whether the path itself may be a symbolic link.

    Raises:
        BadImage: it is not there, not readable, not a plain file, or larger than ``MAX_FILE_BYTES``.
    """
    try:
        return retried(lambda: _read_plain_file(path, follow_links))
    except OSError as error:
        raise (BadImage("not_a_file", "is a folder") if path.is_dir() else _refused(error)) from error


def _read_plain_file(path: Path, follow_links: bool) -> bytes:
    if not follow_links and not hasattr(os, "O_NOFOLLOW") and path.is_symlink():  # Windows
        raise _link()
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # opening a pipe would block
    flags |= 0 if follow_links else getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    try:
        _require_plain(os.fstat(descriptor))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _require_plain(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not_a_file", f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'not a plain file')}")
    require_sane_bytes(status.st_size)


def require_sane_bytes(n_bytes: int) -> None:
    """Refuse a file or archive member of more than ``MAX_FILE_BYTES``."""
    if n_bytes > MAX_FILE_BYTES:
        found, expected = f"{n_bytes:,} bytes", f"at most {MAX_FILE_BYTES:,}"
        raise BadImage("too_large", "the file is too large", found=found, expected=expected)


def _link() -> BadImage:
    return BadImage("not_a_file", "is a symbolic link, which is not followed")


def _refused(error: OSError) -> BadImage:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return BadImage("vanished", "was listed and is no longer there")
    if isinstance(error, PermissionError):
        return BadImage("forbidden", f"cannot be read: {error.strerror}")
    if error.errno == errno.ELOOP:
        return _link()
    if error.errno == errno.ENXIO:
        return BadImage("not_a_file", "is not a plain file")
    return BadImage("unavailable", f"cannot be read: {error.strerror}")
