"""Remote files: addresses, lists of them with braces and patterns, and what a store says of each.

Credentials come from the variables and files of each store's own tools; none is taken from an address.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from foundation.errors import DataError
from foundation.paths import without_secrets
from foundation.storage.remote.errors import RemoteError, missing_package
from foundation.storage.remote.requests import LOOK_PAUSES, asked
from foundation.storage.retrying import LONG_PAUSES

TIMEOUT_S = 60.0
"""longest silence of a server, seconds"""
_AT_ONCE = 16
_S3 = ("s3", "s3a")
_MOST_NAMES = 1_000_000
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "Last-Modified", "mtime", "updated", "created")


@dataclass(frozen=True)
class RemoteObject:
    """A file in a store, as it was when it was listed.

    Attributes:
        address: with its protocol.
        size: in bytes.
        version: changes with the content, as far as the store says anything; "" if it says nothing.
        checksum: (algorithm, hex digest) of the content, where the store offers one.
    """

    address: str
    size: int
    version: str
    checksum: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """The last part of the address, without a query."""
        return PurePosixPath(urlsplit(self.address).path or self.address).name

    @property
    def key(self) -> str:
        """A name for files that belong to this very version of the object."""
        return hashlib.sha256("\n".join((self.address, str(self.size), self.version)).encode()).hexdigest()[:32]


def braces(text: str) -> list[str]:
    """Names that a text with braces stands for, as in shells and webdataset: ``{000..123}``, ``{train,val}``.

    Raises:
        DataError: more than a million names.
    """
    parts, last = [], 0
    for match in _BRACES.finditer(text):
        choices = _choices(match[1])
        if choices is not None:
            parts += [[text[last : match.start()]], choices]
            last = match.end()
    parts.append([text[last:]])
    n = 1
    for each in parts:
        n *= len(each)
    DataError.unless(n <= _MOST_NAMES, "stands for too many names", found=f"{text}: {n:,}", expected=f"{_MOST_NAMES:,}")
    return ["".join(each) for each in itertools.product(*parts)]


def _choices(inside: str) -> list[str] | None:
    found = _RANGE.fullmatch(inside)
    if found is None:
        return inside.split(",") if "," in inside else None
    first, last = int(found[1]), int(found[2])
    width = len(found[1]) if found[1].startswith("0") or len(found[1]) == len(found[2]) else 0
    return [str(i).zfill(width) for i in range(first, min(last, first + _MOST_NAMES) + 1)]


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it; fsspec has one for each process, as none survives a fork.

    Raises:
        DataError: an unknown protocol, or a package that is missing.
    """
    import fsspec

    protocol = urlsplit(address).scheme
    try:
        found, path = fsspec.core.url_to_fs(address, **_options(protocol, fsspec.config.conf.get(protocol, {})))
    except ImportError as error:
        raise missing_package(error, address) from error
    except ValueError as error:
        known = ", ".join(f"{each}://" for each in ("s3", "gs", "hf", "https"))
        what = f"cannot be opened: {without_secrets(str(error))}"
        raise DataError(what, field=without_secrets(address), expected=f"{known}, or another of fsspec") from error
    if protocol in _S3:
        found.retries = 1  # its own come on top of ours, in silence
    return found, path


def _options(protocol: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Time-outs where the user's configuration of fsspec gives none; one try a request, as ``asked`` tries again."""
    if protocol in ("http", "https") and "client_kwargs" not in given:
        import aiohttp

        silence = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
        return {"client_kwargs": {"timeout": silence}}
    if protocol in _S3 and "config_kwargs" not in given:
        retries = {"total_max_attempts": 1}
        return {"config_kwargs": {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S, "retries": retries}}
    return {}


def list_objects(pattern: str, suffix: str, field: str) -> list[RemoteObject]:
    """The files that an address stands for, in the order of their names.

    Args:
        pattern: an address of a file or of a folder, with braces or ``*``; web servers list a folder only with / at
            its end, and only where they show it as a page of links.
        suffix: of the files that are taken from a folder, e.g. ``.tar``.
        field: what an error calls the address.

    Raises:
        DataError: no such file, or the store gives no access.
    """
    system, _ = file_system(pattern)
    system.invalidate_cache()
    names = braces(pattern)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        listed = list(pool.map(lambda name: _listed(name, suffix, many=len(names) > 1), names))
        objects = list(pool.map(_object, itertools.chain.from_iterable(listed)))
    DataError.unless(
        len(objects) > 0,
        "no such files",
        field=field,
        found=without_secrets(pattern),
        expected=f"an address of {suffix} files, of a folder of them, or a pattern",
        fix="check the address",
    )
    objects.sort(key=lambda each: each.address)
    return objects


def described_objects(addresses: Sequence[str]) -> list[RemoteObject]:
    """Files by their addresses, in this order. Raises RemoteError."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda address: _object((address, stated(address))), addresses))


def listed_below(folder: str) -> list[RemoteObject]:
    """Every file below a folder of a store as it is now, in the order of their addresses.

    Raises:
        RemoteError: nothing is there, or the store gives no access.
    """
    system, path = file_system(folder)
    top = path.rstrip("/") + "/"

    def look() -> list[tuple[str, Mapping[str, Any]]]:
        system.invalidate_cache()
        found = system.find(path, detail=True)
        return [
            (f"{folder.rstrip('/')}/{name[len(top) :]}", each)
            for name, each in sorted(found.items())
            if name.startswith(top)
        ]

    listed = asked(look, folder)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(_object, listed))


def _listed(address: str, suffix: str, *, many: bool) -> list[tuple[str, Mapping[str, Any]]]:
    """Addresses that one name without braces stands for, each with what the store says of it ({}: not asked yet)."""
    system, path = file_system(address)

    def look() -> list[tuple[str, Mapping[str, Any]]]:
        if any(each in urlsplit(address).path for each in "*[") or address.endswith("/"):
            found = system.ls(path, detail=True) if address.endswith("/") else system.glob(path, detail=True).values()
            files = [each for each in found if each["type"] == "file"]
            if address.endswith("/"):
                files = [each for each in files if each["name"].partition("?")[0].endswith(suffix)]
            return [(system.unstrip_protocol(each["name"]), each) for each in files]
        found = system.info(path)
        return [(address, found)] if many or found["type"] == "file" else _listed(f"{address}/", suffix, many=many)

    return asked(look, address, LOOK_PAUSES)


def _object(listed: tuple[str, Mapping[str, Any]]) -> RemoteObject:
    address, said = listed
    if said.get("size") is None or not _version(said):  # web servers list names alone
        said = stated(address)
    if said.get("size") is None:
        what, fix = "does not say how large it is", "serve it with a Content-Length, or copy it to a local disk"
        raise DataError(what, field=without_secrets(address), fix=fix)
    return RemoteObject(address, int(said["size"]), _version(said), _checksum(said))


def stated(address: str, pauses: Sequence[float] = LOOK_PAUSES) -> Mapping[str, Any]:
    """What a store says of a file now; ``pauses`` are the seconds before each new try.

    Raises:
        RemoteError: nothing, after several tries.
    """
    system, path = file_system(address)
    return asked(lambda: dict(system.info(path)), address, pauses)


def current(address: str) -> RemoteObject:
    """A file as it is now, whatever was listed before.

    Raises:
        RemoteError: it is not there, or the store gives no access.
    """
    system, _ = file_system(address)
    system.invalidate_cache()
    said = stated(address, LONG_PAUSES)
    if said.get("type") == "directory":
        raise RemoteError("vanished", "is a folder, where a file is wanted", address)
    return _object((address, said))


def require_same(listed: RemoteObject) -> None:
    """Require that a file is the one that was listed.

    A web server that refuses HEAD is asked with GET, and a gateway that lost the end of that answer states a smaller
    size: another file must be stated twice.

    Raises:
        RemoteError: it was replaced or is gone.
    """
    for _ in range(2):
        now = current(listed.address)
        if (now.size, now.version) == (listed.size, listed.version):
            return
    raise RemoteError("changed", "is another file than when it was listed", listed.address)


def _version(said: Mapping[str, Any]) -> str:
    for name in _VERSIONS:
        value = said.get(name)
        if value:
            return str(value.timestamp() if isinstance(value, datetime.datetime) else value)
    return ""


def _checksum(said: Mapping[str, Any]) -> tuple[str, str] | None:
    """A checksum that a store gives for the whole content; an ETag of S3 is none where it encrypts."""
    large = said.get("lfs")
    sha256 = large.get("sha256") if isinstance(large, Mapping) else getattr(large, "sha256", None)
    if sha256:
        return "sha256", str(sha256)
    md5 = said.get("md5Hash") or said.get("Content-MD5")
    try:
        return ("md5", base64.b64decode(md5, validate=True).hex()) if md5 else None
    except ValueError:
        return None
