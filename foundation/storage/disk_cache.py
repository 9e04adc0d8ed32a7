"""A folder of files that can be made again, of bounded size, shared by the processes of a machine.

A file is made once, under a lock of its own, and appears complete or not at all. The least recently used files are
removed for new ones. A reader opens a file and reads; one that finds it gone asks again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from foundation.errors import DataError
from foundation.paths import CACHE_VARIABLE
from foundation.storage import durable
from foundation.storage.names import MOST_NAME_BYTES, is_temporary

_LOCKS = ".locks"
_TOUCH_SECONDS = 60.0
_LONGEST_SUFFIX = 80


class DiskCache:
    """Files below one folder, found by key.

    Args:
        folder: made when the first file is.
        limit_bytes: of all files together.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._touched: dict[str, float] = {}

    def find(self, key: str, name: str = "") -> Path | None:
        """The file of a key, if it is there; it counts as used now."""
        path = self._path(key, name)
        now = time.monotonic()
        if now - self._touched.get(path.name, -_TOUCH_SECONDS) < _TOUCH_SECONDS:
            return path if path.exists() else None
        try:
            os.utime(path)
        except OSError:
            return path if path.exists() else None  # a folder that may only be read
        self._touched[path.name] = now
        return path

    def get(self, key: str, n_bytes: int, make: Callable[[Path], None], name: str = "") -> Path:
        """The file of a key; ``make`` writes it to the path it is given if it is not there.

        Args:
            key: a file name.
            n_bytes: its size, or what it may need.
            make: called in one process at a time.
            name: a readable end of the file's name.

        Raises:
            DataError: it is larger than the cache.
            StorageError: the disk refused.
        """
        return self._get(key, n_bytes, make, name, wait=True)

    def _get(self, key: str, n_bytes: int, make: Callable[[Path], None], name: str, *, wait: bool) -> Path:
        found = self.find(key, name)
        if found is not None:
            return found
        path = self._path(key, name)
        if n_bytes > self.limit_bytes:
            raise DataError(
                "is larger than the cache",
                field=name or key,
                found=f"{n_bytes / 2**30:.3f} GiB",
                expected=f"at most {self.limit_bytes / 2**30:.3f} GiB",
                fix="increase data.remote_cache_gib, or write smaller files",
            )
        with self._locked(key, wait=wait):
            found = self.find(key, name)
            if found is None:
                durable.sweep(self.folder)
                self._make_room(n_bytes)
                durable.publish_file(path, make)
                found = path
        return found

    def prepare(self, key: str, n_bytes: int, make: Callable[[Path], None], name: str = "") -> None:
        """As ``get``, but return at once where another process or thread is making the file."""
        from filelock import Timeout

        with contextlib.suppress(Timeout):
            self._get(key, n_bytes, make, name, wait=False)

    def _path(self, key: str, name: str) -> Path:
        return self.folder / (f"{key}-{name[-_LONGEST_SUFFIX:]}" if name else key)[:MOST_NAME_BYTES]

    @contextlib.contextmanager
    def _locked(self, key: str, *, wait: bool = True) -> Iterator[None]:
        from filelock import FileLock

        path = self.folder / _LOCKS / key
        with durable.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, timeout=-1 if wait else 0):
            yield

    def _make_room(self, n_bytes: int) -> None:
        """Remove the least recently used files until ``n_bytes`` more fit into the limit and onto the disk."""
        with self._locked("room"):
            files = sorted(self._files(), key=lambda each: each[1].st_mtime)
            used = sum(status.st_size for _, status in files)
            for path, status in files:
                if used + n_bytes <= self.limit_bytes:
                    break
                if not is_temporary(path):
                    with contextlib.suppress(OSError):  # open elsewhere, on Windows
                        path.unlink(missing_ok=True)
                        used -= status.st_size
        where = f"a cache; {CACHE_VARIABLE} names its folder, data.remote_cache_gib its size"
        durable.require_free_space(self.folder, n_bytes, where)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        with os.scandir(self.folder) as entries:
            for each in entries:
                with contextlib.suppress(FileNotFoundError):
                    if each.is_file(follow_symlinks=False):
                        yield Path(each.path), each.stat()
