"""Codes at addresses, and of runs whose codes are at one: verified copies on this machine.

Copies of a token dataset are checked against its manifest, which is copied last; they stay until someone removes them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from foundation.codes.config import CODES_ADDRESS
from foundation.codes.manifest import MANIFEST, manifest_of
from foundation.config import digest
from foundation.errors import DataError
from foundation.paths import cache_root, expand, is_remote, require_no_secret, without_secrets
from foundation.storage import durable
from foundation.storage.places import LocalPlace, Place, RemotePlace, fetch_copies
from foundation.storage.serialization import read_json

_FILES = (".parquet", ".npy", ".npz")
_ENDINGS = (*_FILES, ".arrow", ".json")
"""of the files that codes can be in"""


def local_codes(source: str, field: str = "codes") -> Path:
    """A path of codes that can be read: the given one, or that of copies of what is at an address.

    Args:
        source: a path, a run folder, or an address of a token dataset, of a folder of files, or of a file.
        field: names it in messages.

    Raises:
        ConfigError: an address with a password or a signature.
        DataError: nothing there that holds codes, an unfinished dataset, or one that differs from its manifest.
        RemoteError: the store gives no access.
        StorageError: the disk refused.
    """
    if is_remote(source):
        require_no_secret(source, field)
        return _fetch(source.rstrip("/"), field)
    path = Path(expand(source, field))
    fetch_run_codes(path)
    return path


def codes_place(run: Path) -> Place:
    """The place of a run's codes: its folder ``codes``, or an address of which that folder has copies."""
    path = run / CODES_ADDRESS
    if not path.is_file():
        return LocalPlace(run / "codes")
    fix = "restore it, or move it away if the codes are in the run folder"
    address = str(read_json(path, ("address",), fix=fix)["address"])
    require_no_secret(address, str(path))
    return RemotePlace(address, run / "codes")


def fetch_run_codes(run: Path) -> None:
    """Copy a run's codes from their address into its folder, unless they are there. Raises as ``local_codes``."""
    place = codes_place(run)
    if isinstance(place, RemotePlace) and not (place.folder / MANIFEST).is_file():
        fetch_dataset(place)


def fetch_dataset(place: RemotePlace) -> None:
    """Copy a complete token dataset into the folder of its copies, each file checked against the manifest.

    Raises:
        DataError: it is not complete, or a file differs from the manifest.
        RemoteError, StorageError: the store or the disk refused.
    """
    content = place.find(MANIFEST)
    what, expected = "the token dataset is not complete", f"a folder with {MANIFEST}"
    DataError.unless(content is not None, what, field=place.shown, expected=expected, fix="run tessera encode")
    assert content is not None
    manifest = manifest_of(content, f"{place.shown}/{MANIFEST}")
    listed = {each["file"]: each for entry in manifest["splits"].values() for each in entry["files"]}
    beside = [name for name in place.names() if name != MANIFEST and not name.startswith("data/")]
    missing = [name for name in listed if not _is_same(place.folder / name, listed[name])]
    n_bytes = sum(listed[name].get("bytes", 0) for name in missing)
    durable.require_free_space(place.folder, n_bytes, "copies of the codes")
    if n_bytes:
        size = f"{n_bytes / 2**20:,.1f} MiB in {len(missing)} files"
        print(f"copying codes from {place.shown} to {place.folder}: {size}", file=sys.stderr)
    fetch_copies(place, [*beside, *missing])
    for name in missing:
        what, fix = "differs from what the manifest lists", "run tessera encode, which finishes the dataset again"
        same = _is_same(place.folder / name, listed[name])
        DataError.unless(same, what, field=f"{place.shown}/{name}", fix=fix)
    durable.replace_file(place.folder / MANIFEST, content)


def _is_same(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and durable.file_sha256(path) == entry["sha256"]


def _fetch(address: str, field: str) -> Path:
    if PurePosixPath(address).suffix.lower() in _FILES:
        folder, _, name = address.rpartition("/")
        return RemotePlace(folder, _copies({"folder": folder})).local(name)
    place = RemotePlace(address)
    content, stamps = place.find(MANIFEST), place.stamps("")
    if content is not None:
        copies = _copies({"manifest": content.decode(errors="replace")})
        fetch_dataset(RemotePlace(address, copies))
        return copies
    if "recipe.yaml" in stamps:
        return _fetch(f"{address}/codes", field)
    what, shown = "the token dataset is not complete", without_secrets(address)
    DataError.unless("plan.json" not in stamps, what, field=field, found=shown, fix="run tessera encode")
    wanted = {name: stamp for name, stamp in stamps.items() if name.endswith(_ENDINGS)}
    what, expected = "holds no codes", f"a token dataset, or files that end in {', '.join(_FILES)}"
    DataError.unless(len(wanted) > 0, what, field=field, found=shown, expected=expected, fix="check the address")
    copies = _copies({"folder": address, "files": {name: list(stamp) for name, stamp in wanted.items()}})
    fetch_copies(RemotePlace(address, copies), wanted)
    return copies


def _copies(what: Mapping[str, Any]) -> Path:
    """The folder of the copies of something."""
    return cache_root() / "codes" / digest(dict(what))[:32]
