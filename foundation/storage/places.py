"""Places for outputs: a folder on a disk, or a folder of an object store, with one set of operations.

Files have names with ``/``, below the place. A file appears whole or not at all, at either kind: on a disk by a rename,
in a store by one PUT. A folder of files appears on a disk by a rename; in a store the last of them, which the caller
names, says that the others are there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from foundation.errors import DataError
from foundation.paths import expand, is_remote, require_no_secret, without_secrets
from foundation.storage import durable
from foundation.storage.names import is_portable, is_temporary
from foundation.storage.remote import uploads
from foundation.storage.remote.errors import RemoteError
from foundation.storage.remote.files import DEFAULT_CACHE_GIB, LocalFile, RemoteFile, StoredFile, stream_cache
from foundation.storage.remote.objects import RemoteObject, current
from foundation.storage.remote.transfer import fetch

_AT_ONCE = 16
Write = Callable[[Path], None]


class Place(Protocol):
    """A folder for outputs.

    Attributes:
        folder: the folder itself; of a place in a store, the local folder that keeps copies of its files, or temporary
            ones.
        shared: the folder in which the processes that work on this place see each other; None where there is none.
        shown: how messages name it, without secrets.
    """

    folder: Path
    shared: Path | None
    shown: str

    def exists(self, name: str) -> bool:
        """Whether a file is there. One that was seen, and that this process did not remove, counts as there."""
        ...

    def has_folder(self, name: str, last: str) -> bool:
        """Whether a folder is there whole, see ``publish_folder``."""
        ...

    def names(self, below: str = "") -> list[str]:
        """Every file below a folder of it now, sorted, without temporary ones."""
        ...

    def find(self, name: str) -> bytes | None:
        """Content of a file now; None where it is not there.

        Raises:
            OSError, RemoteError: it cannot be read.
        """
        ...

    def local(self, name: str) -> Path:
        """A path at which a file can be read: its own, or that of a verified copy."""
        ...

    def stored(self, name: str) -> StoredFile:
        """A file of which little is read, which makes no copy of it."""
        ...

    def publish_file(self, name: str, write: Write, verify: Write | None = None) -> None:
        """Create a file from what ``write`` puts at a temporary path; see ``durable.publish_file``.

        Raises:
            StorageError: other content is there, or the disk refused.
            RemoteError: the store refused.
        """
        ...

    def publish_folder(self, name: str, fill: Write, last: str) -> None:
        """Create a folder with what ``fill`` puts into a temporary one, all or nothing.

        Args:
            name: of the folder.
            fill: as of ``durable.publish_folder``.
            last: name of its file that is written last where files come one by one.

        Raises:
            StorageError, RemoteError: as ``publish_file``; a folder on a disk must not be there.
        """
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Put content at a name, in one step. Raises as ``publish_file``."""
        ...

    def send(self, name: str) -> bool:
        """Put the file that ``folder`` has of that name into the store; False if this place is no store."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file. Raises StorageError, RemoteError."""
        ...

    def stamps(self, below: str) -> dict[str, tuple[Any, ...]]:
        """Name of each file below a folder => what changes when it is replaced."""
        ...

    def sweep(self, below: str = "") -> None:
        """Remove what dead processes left in a folder of it on this machine."""
        ...

    def require_free_space(self, n_bytes: int, purpose: str) -> None:
        """Raise ``StorageError`` unless that much fits onto the disk that its files come to."""
        ...


class LocalPlace:
    """A folder on a disk; what is written survives a crash.

    Args:
        folder: made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.shown = folder, str(folder)
        self.shared: Path | None = folder

    def exists(self, name: str) -> bool:
        """See ``Place``."""
        return (self.folder / name).exists()

    def has_folder(self, name: str, last: str) -> bool:
        """See ``Place``."""
        return (self.folder / name).exists()

    def names(self, below: str = "") -> list[str]:
        """See ``Place``."""
        found = (each for each in (self.folder / below).rglob("*") if not is_temporary(each) and each.is_file())
        return sorted(each.relative_to(self.folder).as_posix() for each in found)

    def find(self, name: str) -> bytes | None:
        """See ``Place``."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def local(self, name: str) -> Path:
        """See ``Place``."""
        return self.folder / name

    def stored(self, name: str) -> StoredFile:
        """See ``Place``."""
        return LocalFile(self.folder / name)

    def publish_file(self, name: str, write: Write, verify: Write | None = None) -> None:
        """See ``Place``."""
        durable.publish_file(self.folder / name, write, verify)

    def publish_folder(self, name: str, fill: Write, last: str) -> None:
        """See ``Place``."""
        durable.publish_folder(self.folder / name, fill)

    def replace(self, name: str, content: bytes) -> None:
        """See ``Place``."""
        durable.replace_file(self.folder / name, content)

    def send(self, name: str) -> bool:
        """See ``Place``."""
        return False

    def remove(self, name: str) -> None:
        """See ``Place``."""
        durable.remove_folder(self.folder / name)

    def stamps(self, below: str) -> dict[str, tuple[Any, ...]]:
        """See ``Place``."""
        found = {name: (self.folder / name).stat() for name in self.names(below)}
        return {name: (each.st_ino, each.st_mtime_ns) for name, each in found.items()}

    def sweep(self, below: str = "") -> None:
        """See ``Place``."""
        durable.sweep(self.folder / below)

    def require_free_space(self, n_bytes: int, purpose: str) -> None:
        """See ``Place``."""
        durable.require_free_space(self.folder, n_bytes, purpose)


class RemotePlace:
    """A folder of an object store.

    Args:
        address: of the folder; without secrets.
        copies: a local folder that keeps a copy of every file that was written or asked for; None keeps none.
    """

    def __init__(self, address: str, copies: Path | None = None) -> None:
        self.address, self.shown = address.rstrip("/"), without_secrets(address)
        self._keeps, self.shared = copies is not None, copies
        self._temporary = None if copies is not None else tempfile.TemporaryDirectory(prefix="tessera-")
        self.folder = copies if copies is not None else Path(self._temporary.name)  # type: ignore[union-attr]
        self._seen: set[str] = set()

    def exists(self, name: str) -> bool:
        """See ``Place``."""
        if name not in self._seen and uploads.exists(self._at(name)):
            self._seen.add(name)
        return name in self._seen

    def has_folder(self, name: str, last: str) -> bool:
        """See ``Place``."""
        return self.exists(f"{name}/{last}")

    def names(self, below: str = "") -> list[str]:
        """See ``Place``."""
        found = sorted(map(self._name, uploads.list_below(self._at(below))))
        self._seen.update(found)
        return found

    def find(self, name: str) -> bytes | None:
        """See ``Place``."""
        try:
            return uploads.read_bytes(self._at(name))
        except RemoteError as error:
            if error.code != "vanished":
                raise
            return None

    def local(self, name: str) -> Path:
        """See ``Place``."""
        path, address = self.folder / name, self._at(name)
        what, fix = "has a name that no file on this machine can have", "give it another name"
        portable = all(map(is_portable, name.split("/")))
        DataError.unless(portable, what, field=without_secrets(address), fix=fix)
        if path.exists() and uploads.holds(address, path):
            return path
        listed = current(address)
        if path.exists():
            durable.remove_file(path)
        durable.publish_file(path, lambda target: fetch(listed, target))
        return path

    def stored(self, name: str) -> StoredFile:
        """See ``Place``."""
        return RemoteFile(current(self._at(name)), stream_cache(DEFAULT_CACHE_GIB), in_ranges=True)

    def publish_file(self, name: str, write: Write, verify: Write | None = None) -> None:
        """See ``Place``."""
        durable.publish_file(self.folder / name, write, verify)
        self._put(self.folder / name, name)

    def publish_folder(self, name: str, fill: Write, last: str) -> None:
        """See ``Place``; files that are there already must be the same."""
        if self._keeps:
            if not (self.folder / name).exists():
                durable.publish_folder(self.folder / name, fill)
            self._put_folder(self.folder / name, name, last)
            return
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            fill(Path(temporary))
            self._put_folder(Path(temporary), name, last)

    def _put_folder(self, source: Path, name: str, last: str) -> None:
        files = [each.relative_to(source).as_posix() for each in sorted(source.rglob("*")) if each.is_file()]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda file: self._put(source / file, f"{name}/{file}"), set(files) - {last}):
                pass
        self._put(source / last, f"{name}/{last}")

    def replace(self, name: str, content: bytes) -> None:
        """See ``Place``."""
        uploads.upload_bytes(content, self._at(name))
        self._seen.add(name)
        if self._keeps:
            durable.replace_file(self.folder / name, content)

    def send(self, name: str) -> bool:
        """See ``Place``."""
        uploads.upload(self.folder / name, self._at(name), new=True)
        self._seen.add(name)
        return True

    def remove(self, name: str) -> None:
        """See ``Place``."""
        if (self.folder / name).exists():  # first: a copy is never ahead of the store
            durable.remove_file(self.folder / name)
        uploads.remove([self._at(name)])
        self._seen.discard(name)

    def stamps(self, below: str) -> dict[str, tuple[Any, ...]]:
        """See ``Place``."""
        return {self._name(each): (each.size, each.version) for each in uploads.list_below(self._at(below))}

    def sweep(self, below: str = "") -> None:
        """See ``Place``."""
        durable.sweep(self.folder / below)

    def require_free_space(self, n_bytes: int, purpose: str) -> None:
        """See ``Place``."""
        if self._keeps:
            durable.require_free_space(self.folder, n_bytes, purpose)

    def _at(self, name: str) -> str:
        return f"{self.address}/{name}" if name else self.address

    def _name(self, found: RemoteObject) -> str:
        return found.address.removeprefix(f"{self.address}/")

    def _put(self, path: Path, name: str) -> None:
        uploads.upload(path, self._at(name), new=True)
        self._seen.add(name)
        if not self._keeps:
            path.unlink()


def fetch_copies(place: Place, names: Iterable[str]) -> None:
    """Make the local copies of files ready, several at once; see ``Place.local``."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(place.local, names):
            pass


def place_at(target: str, field: str) -> Place:
    """The place of a path or an address that was given for outputs.

    Args:
        target: a folder, or an address of one, ``s3://bucket/folder``.
        field: the option that names it.

    Raises:
        ConfigError: an address with a password or a signature, or a path without a home folder.
        DataError: an unknown kind of address, or a package that is missing.
    """
    if not is_remote(target):
        return LocalPlace(Path(expand(target, field)))
    require_no_secret(target, field)
    return RemotePlace(target)


def as_place(folder: str | os.PathLike[str] | Place) -> Place:
    """A folder on a disk as a place; a place stays as it is."""
    return LocalPlace(Path(folder)) if isinstance(folder, (str, os.PathLike)) else folder
