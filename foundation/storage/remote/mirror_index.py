"""A mirror in a store: objects named by their content, and an index that says which of them make the folder.

    index.json                      path => SHA-256 and size of every file, the owner, the number of the commit
    objects/<SHA-256, 16>/<path>    content, never replaced by other content

One PUT of the index is one commit: an object is put before an index names it, and removed after no index does. A
process that begins to mirror puts an index with a new owner; an owner reads the index before each commit and gives up
where another one stands in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from foundation.errors import CheckpointError, ConfigError, StorageError
from foundation.paths import is_remote, require_no_secret, without_secrets
from foundation.storage.names import is_portable
from foundation.storage.remote.errors import RemoteError
from foundation.storage.remote.uploads import list_below, read_bytes, remove, upload, upload_bytes

INDEX = "index.json"
_OBJECTS = "objects"
_FORMAT = 1
_HASH = re.compile(r"[0-9a-f]{64}")
_DISKS = ("file", "local")
"""protocols of fsspec that do not put a file whole or not at all"""
_READS = 3


@dataclass(frozen=True)
class Entry:
    """A file of a mirror: the SHA-256 (hex) of its content, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Owner:
    """Who mirrors.

    Attributes:
        token: of one start of a command.
        generation: how many starts there were before.
        host, pid: of the process.
        since: when it began, in UTC.
    """

    token: str
    generation: int
    host: str
    pid: int
    since: str

    @classmethod
    def of_this_process(cls, generation: int) -> Owner:
        """A new one."""
        return cls(secrets.token_hex(8), generation, platform.node(), os.getpid(), now())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class TakenOver(CheckpointError):
    """Another process mirrors to the same address since later."""

    def __init__(self, address: str, owner: Owner) -> None:
        what = f"another process mirrors there now: {owner}; this run has stopped, and its folder is complete as it is"
        fix = "stop the other one and run the same command again, or give another --mirror"
        super().__init__(what, field=without_secrets(address), fix=fix)


class LostObjects(StorageError):
    """The mirror was emptied, or written to by an earlier owner: everything has to be put again."""

    def __init__(self, shown: str) -> None:
        super().__init__("was changed by something else; everything is put again", field=shown)


@dataclass(frozen=True)
class MirrorIndex:
    """What a mirror holds.

    Attributes:
        run: id of the run.
        name: of its folder.
        owner: who mirrors, or did last.
        commit: counts up.
        written: when, in UTC.
        files: path below the folder, with / between its parts => content.
    """

    run: str
    name: str
    owner: Owner
    commit: int
    written: str
    files: Mapping[str, Entry]

    def to_bytes(self) -> bytes:
        """As JSON with a checksum of itself."""
        values = {"format": _FORMAT, **dataclasses.asdict(self)}
        return json.dumps({"index": values, "sha256": _digest(values)}, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> MirrorIndex:
        """Read one, which may come from anyone.

        Raises:
            ValueError: damaged, of another format, or with paths that lead out of a folder.
        """
        try:
            saved = json.loads(data)
            values = saved["index"]
            if saved["sha256"] != _digest(values):
                raise ValueError("it does not have the checksum that it states")
            if values.pop("format") != _FORMAT:
                raise ValueError("it has another format")
            files = {_sound(path): _entry(each) for path, each in values.pop("files").items()}
            index = cls(owner=Owner(**values.pop("owner")), files=files, **values)
            if "/" in _sound(index.name):
                raise ValueError(f"it names the folder {index.name!r}")
            return index
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sound(path: str) -> str:
    parts = path.split("/")
    if not all(is_portable(each) and not each.startswith(".") for each in parts):
        raise ValueError(f"it names {path!r}, which is no file of a run")
    return path


def _entry(values: Any) -> Entry:
    entry = Entry(**values)
    if not _HASH.fullmatch(entry.sha256) or not isinstance(entry.size, int) or entry.size < 0:
        raise ValueError("it holds something else than hashes and sizes")
    return entry


class MirrorStore:
    """One mirror, as the process that owns it, or reads it, sees it.

    Args:
        address: of a folder in a store, of its own.

    Attributes:
        index: as it was last read or written; None before there is one.

    Raises:
        ConfigError: no address, or one with a password.
    """

    def __init__(self, address: str) -> None:
        expected = "an address in an object store, e.g. s3://bucket/run"
        sound = is_remote(address) and urlsplit(address).scheme not in _DISKS
        ConfigError.unless(sound, "is no such address", field="--mirror", found=repr(address), expected=expected)
        require_no_secret(address, "--mirror")
        self.address = address.rstrip("/")
        self.shown = without_secrets(self.address)
        self.index: MirrorIndex | None = None
        self._stored: set[str] = set()
        self._strays: set[str] = set()
        self._is_again = False

    def read(self) -> MirrorIndex | None:
        """The index as it is now; None where nothing is.

        Raises:
            ConfigError: something else is there.
            CheckpointError: the index is damaged.
            RemoteError: the store gives no access.
        """
        reason = ""
        for _ in range(_READS):
            try:
                return MirrorIndex.from_bytes(read_bytes(f"{self.address}/{INDEX}"))
            except ValueError as error:
                if isinstance(error, RemoteError) and error.code == "vanished":
                    self._require_empty()
                    return None
                if isinstance(error, RemoteError) and error.code != "changed":
                    raise
                reason = str(error)  # it may be replaced while it is read
        fix = "take back an earlier version with the store's own tools, or give another --mirror"
        raise CheckpointError(f"is damaged: {reason}", field=f"{self.shown}/{INDEX}", fix=fix)

    def _require_empty(self) -> None:
        others = list_below(f"{self.address}/")
        if others:
            what, found = "holds something else than the mirror of a run", without_secrets(others[0].address)
            fix = "give an address below which nothing is"
            raise ConfigError(what, field="--mirror", found=f"{self.shown}, with {found}", fix=fix)

    def claim(self, run: str, name: str) -> Owner:
        """Become the owner: an index with the files that are there, and this process.

        Args:
            run: its id.
            name: of its folder.

        Raises:
            RemoteError: the store refused.
        """
        before = self.index
        files = {} if before is None else before.files
        owner = Owner.of_this_process(0 if before is None else before.owner.generation + 1)
        self._write(MirrorIndex(run, name, owner, 1 if before is None else before.commit + 1, now(), files))
        self._stored = {object_name(path, entry) for path, entry in files.items()}
        return owner

    def put(self, path: str, entry: Entry, place: Path) -> None:
        """Put an object, unless it is there.

        Args:
            path: below the run folder.
            entry: what the file at ``place`` holds.
            place: of the file now, which does not change meanwhile.

        Raises:
            RemoteError: the store refused.
        """
        name = object_name(path, entry)
        if name not in self._stored:
            upload(place, f"{self.address}/{name}")
            self._stored.add(name)

    def commit(self, files: Mapping[str, Entry]) -> None:
        """Make these files the content of the mirror, in one step.

        Args:
            files: all of them; their objects have been put.

        Raises:
            TakenOver: another owner stands in the index.
            LostObjects: the index is gone, or replaced by an earlier owner's; nothing counts as put any more.
            RemoteError: the store refused; the commit before stands.
        """
        own = self.index
        assert own is not None, "claim first"
        there = self._read_own()
        is_own = there is not None and there.owner == own.owner
        if not is_own and not self._is_again:  # its objects may be gone too
            self._stored.clear()
            self._is_again = True
            raise LostObjects(self.shown)
        self._write(dataclasses.replace(own, commit=own.commit + 1, written=now(), files=dict(files)))
        self._is_again = False

    def _read_own(self) -> MirrorIndex | None:
        """The index, which must not be a later owner's.

        Raises:
            TakenOver: it is.
        """
        assert self.index is not None
        there, mine = self.read(), self.index.owner
        if there is not None and there.owner != mine and there.owner.generation >= mine.generation:
            raise TakenOver(self.address, there.owner)
        return there

    def remove_unnamed(self) -> None:
        """Remove the objects that the index does not name.

        Raises:
            TakenOver: another owner stands in the index: nothing is removed.
            RemoteError: the store refused.
        """
        assert self.index is not None
        named = {object_name(path, entry) for path, entry in self.index.files.items()}
        doomed = (self._stored | self._strays) - named
        if doomed and self._read_own() is not None:
            remove([f"{self.address}/{name}" for name in sorted(doomed)])
            self._stored -= doomed
            self._strays.clear()

    def find_strays(self) -> None:
        """Look for objects that a killed process left, so that they are removed too.

        Raises:
            RemoteError: the store gives no access.
        """
        start = f"{self.address}/{_OBJECTS}/"
        self._strays = {f"{_OBJECTS}/{each.address.removeprefix(start)}" for each in list_below(start)}

    def _write(self, index: MirrorIndex) -> None:
        upload_bytes(index.to_bytes(), f"{self.address}/{INDEX}")
        self.index = index


def object_name(path: str, entry: Entry) -> str:
    """Where below a mirror's address the content of a file is."""
    return str(PurePosixPath(_OBJECTS, entry.sha256[:16], path))
