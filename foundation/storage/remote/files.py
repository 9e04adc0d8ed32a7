"""Files that are read at any place, on a disk or in a store; remote ones by way of a cache.

A remote file of which little is asked is read in ranges. Once a quarter of it has been asked for, where each request
counts as some bytes, or when it is said to be needed soon, it is fetched whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import queue
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from foundation.errors import StorageError, TesseraError
from foundation.paths import cache_root, without_secrets
from foundation.storage.disk_cache import DiskCache
from foundation.storage.remote.objects import RemoteObject
from foundation.storage.remote.transfer import fetch, read_range

DEFAULT_CACHE_GIB = 64.0
_SHARE_IN_RANGES = 4
_REQUEST_BYTES = 1 << 17
"""what a request takes as long as, beside its bytes: 20 ms at 6 MB/s"""


class StoredFile(Protocol):
    """A file that may be on a disk or in a store."""

    @property
    def name(self) -> str:
        """Without its folder."""
        ...

    @property
    def size(self) -> int:
        """In bytes, when it was listed."""
        ...

    @property
    def key(self) -> str:
        """Changes with the file's place, size and version."""
        ...

    @property
    def shown(self) -> str:
        """How messages name it."""
        ...

    def read(self, start: int, n_bytes: int) -> bytes:
        """Bytes of it; fewer at its end.

        Raises:
            OSError, RemoteError: they cannot be read.
        """
        ...

    def local(self) -> Path:
        """A path of the whole file, which another process may remove before it is opened."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file on a disk."""

    path: Path

    @property
    def name(self) -> str:
        """Without its folder."""
        return self.path.name

    @property
    def size(self) -> int:
        """In bytes, now."""
        return self.path.stat().st_size

    @property
    def key(self) -> str:
        """Changes with the path, the size and the times of the file."""
        now = self.path.stat()
        text = repr((os.path.realpath(self.path), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def shown(self) -> str:
        """How messages name it."""
        return str(self.path)

    def read(self, start: int, n_bytes: int) -> bytes:
        """Bytes of it; fewer at its end. Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(n_bytes)

    def local(self) -> Path:
        """Its path."""
        return self.path


class RemoteFile:
    """A file in a store.

    Args:
        source: as it was listed.
        cache: where whole files are kept.
        in_ranges: whether it is read in ranges, however much of it is asked for; what is read is kept elsewhere.
    """

    def __init__(self, source: RemoteObject, cache: DiskCache, *, in_ranges: bool = False) -> None:
        self.source, self._cache, self._in_ranges, self._asked = source, cache, in_ranges, 0
        self._without_cache = False
        self.name, self.size, self.key = source.name, source.size, source.key
        self.shown = without_secrets(source.address)

    def read(self, start: int, n_bytes: int) -> bytes:
        """Bytes of it; fewer at its end. Raises RemoteError."""
        n_bytes = max(0, min(n_bytes, self.size - start))
        while (path := self._whole(n_bytes)) is not None:
            try:
                with open(path, "rb") as file:
                    file.seek(start)
                    return file.read(n_bytes)
            except FileNotFoundError:  # removed for another file since
                continue
        data, in_ranges = read_range(self.source, start, n_bytes)
        if not in_ranges:
            self.expect()
        return data

    def local(self) -> Path:
        """A path of the whole file, fetched if it is not there."""
        return self._cache.get(self.key, self.size, lambda target: fetch(self.source, target), self.name)

    def prepare(self) -> None:
        """Fetch the whole file, unless it is there or another process fetches it."""
        self._cache.prepare(self.key, self.size, lambda target: fetch(self.source, target), self.name)

    def expect(self) -> None:
        """Read the whole file from now on: most of it will be needed."""
        self._asked, self._in_ranges = self.size, False

    def _whole(self, n_bytes: int) -> Path | None:
        """The whole file, if it is here or is worth fetching."""
        found = self._cache.find(self.key, self.name)
        if found is not None:
            return found
        self._asked += n_bytes + _REQUEST_BYTES  # may miss some of other threads, which does no harm
        worth = self._asked * _SHARE_IN_RANGES >= self.size
        if not worth or self._in_ranges or self.size > self._cache.limit_bytes or self._without_cache:
            return None
        try:
            return self.local()
        except StorageError as error:  # ranges do without the disk
            self._without_cache = True
            warnings.warn(f"{self.shown} is read in ranges, more slowly: {error}", stacklevel=2)
            return None


def stream_cache(limit_gib: float) -> DiskCache:
    """The cache of this machine's user for streamed files and row groups."""
    return DiskCache(cache_root() / "streamed", int(limit_gib * 2**30))


class Seekable(io.RawIOBase):
    """A stored file as a file object, for readers of formats that ask for ranges."""

    def __init__(self, stored: StoredFile) -> None:
        self._stored, self._at, self._size = stored, 0, stored.size

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from the position on."""
        n = self._size - self._at if size is None or size < 0 else size
        data = self._stored.read(self._at, n)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class ReadAhead:
    """A thread that makes files ready before they are asked for; the last wish counts.

    What fails here fails again, with its reason, where the file is read. In a process forked from this one it begins
    with nothing.
    """

    def __init__(self) -> None:
        self._begin()

    def __reduce__(self) -> tuple[type[ReadAhead], tuple[()]]:
        return ReadAhead, ()  # a thread does not travel to another process

    def _begin(self) -> None:
        self._process = os.getpid()
        self._wanted: queue.SimpleQueue[Sequence[Callable[[], object]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def want(self, steps: Sequence[Callable[[], object]]) -> None:
        """Do these steps next, in order, in place of those that have not begun."""
        if self._process != os.getpid():
            self._begin()
        self._wanted.put(steps)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, args=(self._wanted,), name="read ahead", daemon=True)
            self._thread.start()

    @staticmethod
    def _work(wanted: queue.SimpleQueue[Sequence[Callable[[], object]]]) -> None:
        while True:
            for step in wanted.get():
                with contextlib.suppress(TesseraError, OSError):
                    step()
                if not wanted.empty():
                    break
