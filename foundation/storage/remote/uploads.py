"""Whole files into object stores: one PUT is one commit, verified afterwards.

A reader sees the old file or the new one, never a part: stores show an object when its upload is complete, also one
sent in parts. A process killed meanwhile leaves nothing under the name; parts that it had sent stay hidden until the
store's own rule for incomplete uploads removes them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from foundation.errors import StorageError
from foundation.paths import without_secrets
from foundation.storage.remote.errors import RemoteError, code_of
from foundation.storage.remote.objects import RemoteObject, current, file_system, listed_below
from foundation.storage.remote.requests import asked
from foundation.storage.remote.transfer import BLOCK_BYTES, read_range

PART_BYTES = 50 << 20
"""of an upload in parts; a smaller file is sent in one request"""
_MOST_PARTS, _AT_ONCE, _MD5_DIGITS = 10_000, 16, 32


@dataclass(frozen=True)
class _Content:
    """What is sent: a file, or bytes."""

    source: Path | bytes

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @property
    def part_bytes(self) -> int:
        return max(PART_BYTES, math.ceil(self.size / _MOST_PARTS))

    def open(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else open(self.source, "rb")

    def digest(self, algorithm: str) -> str:
        with self.open() as file:
            return hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]

    def etag(self) -> str:
        """What S3 makes of an upload in parts: the MD5 of the MD5 of each part, and their number."""
        with self.open() as file:
            parts = [hashlib.md5(part).digest() for part in iter(lambda: file.read(self.part_bytes), b"")]
        return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"

    def send(self, system: Any, path: str, *, new: bool) -> None:
        options: dict[str, Any] = {"mode": "create"} if new else {}
        if "s3" in _protocols(system):
            options["chunksize"] = self.part_bytes
        if isinstance(self.source, bytes):
            system.pipe_file(path, self.source, **options)
        else:
            system.put_file(str(self.source), path, **options)


def upload(source: Path, address: str, *, new: bool = False) -> None:
    """Put a file at an address, whole or not at all.

    Args:
        source: a local file, which must not change meanwhile.
        address: of the file in the store, not of a folder.
        new: refuse to replace another content; the first writer wins.

    Raises:
        RemoteError: the store refused, or every try failed.
        StorageError: other content is there.
    """
    _upload(_Content(source), address, new=new)


def upload_bytes(content: bytes, address: str, *, new: bool = False) -> None:
    """Put bytes at an address; see ``upload``."""
    _upload(_Content(content), address, new=new)


def _upload(content: _Content, address: str, *, new: bool) -> None:
    system, path = file_system(address)

    def attempt() -> None:
        is_refused = False
        try:
            content.send(system, path, new=new)
        except Exception as error:
            is_refused = new and (isinstance(error, FileExistsError) or code_of(error) == "changed")
            if not is_refused:
                raise
        if _holds(address, content):  # of a refused one: an earlier try, or another process, has put the same there
            return
        if is_refused:
            raise other_content(address)
        raise OSError(errno.EIO, "the store holds something else than was sent")  # which is sent again

    asked(attempt, address, act="written")


def other_content(address: str) -> StorageError:
    """The error for a file that may not be replaced."""
    fix = "the same input gave two results: move that file away, or give another address, and run the command again"
    return StorageError("exists already with other content", field=without_secrets(address), fix=fix)


def _holds(address: str, content: _Content) -> bool:
    """Whether a file of a store has this content: by a checksum that the store states, else by reading it back."""
    there = current(address)
    if there.size != content.size:
        return False
    if there.checksum is not None:
        algorithm, stated = there.checksum
        return content.digest(algorithm) == stated
    stated = there.version.strip('"')
    ours = content.etag() if "-" in stated else content.digest("md5") if len(stated) == _MD5_DIGITS else ""
    if ours == stated:
        return True
    return remote_sha256(there) == content.digest("sha256")  # the ETag of an encrypted object is no checksum


def holds(address: str, source: Path) -> bool:
    """Whether a file of a store, which is there, has the content of a local one.

    Raises:
        RemoteError: it is not there, or cannot be read.
    """
    return _holds(address, _Content(source))


def remote_sha256(source: RemoteObject) -> str:
    """SHA-256 (hex) of a file of a store, which is read for it.

    Raises:
        RemoteError: it cannot be read.
    """
    total = hashlib.sha256()
    for start in range(0, source.size, BLOCK_BYTES):
        total.update(_bytes(source, start, min(BLOCK_BYTES, source.size - start)))
    return total.hexdigest()


def read_bytes(address: str) -> bytes:
    """The content of a (small) file of a store, as it is now.

    Raises:
        RemoteError: it is not there, or cannot be read.
    """
    there = current(address)
    return _bytes(there, 0, there.size)


def _bytes(source: RemoteObject, start: int, n_bytes: int) -> bytes:
    data, _ = read_range(source, start, n_bytes)
    if len(data) != n_bytes:
        raise RemoteError("changed", "is another file than when it was listed", source.address)
    return data


def exists(address: str) -> bool:
    """Whether a file is at an address now.

    Raises:
        RemoteError: the store gives no access.
    """
    try:
        current(address)
    except RemoteError as error:
        if error.code != "vanished":
            raise
        return False
    return True


def list_below(address: str) -> list[RemoteObject]:
    """Every file below a folder of a store now, in the order of their addresses; empty where there is none.

    Raises:
        RemoteError: the store gives no access.
    """
    try:
        return listed_below(address)
    except RemoteError as error:
        if error.code != "vanished":
            raise
        return []


def remove(addresses: Sequence[str]) -> None:
    """Remove files of a store; those that are not there are passed over.

    Raises:
        RemoteError: the store refused.
    """

    def remove_one(address: str) -> None:
        system, path = file_system(address)
        try:
            asked(lambda: system.rm_file(path), address, act="removed")
        except RemoteError as error:
            if error.code != "vanished":
                raise

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(remove_one, addresses):
            pass


def _protocols(system: Any) -> Sequence[str]:
    found = system.protocol
    return (found,) if isinstance(found, str) else tuple(found)
