"""Packed columns: a copy of a split as flat little-endian files with random access by row.

Parquet has no random access by row. The copy is derived from the shards once, all or nothing, and named by their
identity; a copy of other shards, or a damaged one, is never used and is made again.

``<home>/<split>/<identity>/``: ``codes`` (N x T, uint16 or int32), ``views`` (N, uint8), ``labels`` (N, int64; absent
without labels), ``grids`` (N, int8; absent where images have one shape) and ``packed.json`` with their
sizes, times and SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from foundation.codes.columns import FileColumn, TokenColumns, arrays_of, column_types
from foundation.codes.manifest import SplitShards
from foundation.codes.streamed import ImageIds, RowGroups
from foundation.config import digest
from foundation.errors import DataError, StorageError
from foundation.paths import expand
from foundation.storage import durable

ENVIRONMENT = "TESSERA_PACKED_FOLDER"
_FORMAT = 1
_INDEX = "packed.json"
_IDS_BYTES = 64 << 20


def packed_home(dataset: Path, named: str | None = None) -> Path:
    """Folder of the packed copies of a dataset.

    Args:
        dataset: its folder.
        named: a folder for the packed copies of any datasets; None takes ``TESSERA_PACKED_FOLDER``.

    Returns:
        This dataset's subfolder of ``named``; without one, ``.packed`` in the dataset.
    """
    named = named or os.environ.get(ENVIRONMENT)
    if not named:
        return dataset / ".packed"
    path = dataset.resolve()
    return Path(expand(named, "machine.tokens.packed_folder")) / f"{path.name}-{digest(str(path))[:16]}"


def pack_columns(split: SplitShards, home: Path) -> TokenColumns:
    """The columns of a split, read by row, from its packed copy; it is made first unless a sound one exists.

    Making it needs the memory of one shard; one process makes it, others wait.

    Raises:
        DataError, ContractError: as ``SplitShards.read``.
        StorageError: the copy cannot be written.
    """
    target = home / split.split / split.identity[:32]
    if not _is_sound(target, split):
        _make(target, split)
    columns: dict[str, Any] = {name: FileColumn(target / name, *each) for name, each in column_types(split).items()}
    ids = ImageIds(RowGroups(split, _IDS_BYTES))
    return TokenColumns(columns["codes"], columns.get("labels"), columns["views"], ids, columns.get("grids"))


def _make(target: Path, split: SplitShards) -> None:
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / "lock"):
            if _is_sound(target, split):
                return  # another process has made it while this one waited
            for other in [each for each in target.parent.iterdir() if each.is_dir()]:
                with contextlib.suppress(StorageError):  # Windows removes nothing that another process reads
                    durable.remove_folder(other)  # of other shards, damaged, or left half-made
            durable.require_free_space(target.parent, sum(_sizes(split).values()), "the packed copy of the codes")
            _publish(target, split)
    except (OSError, NotImplementedError, StorageError) as error:  # the second: a disk without locks
        raise StorageError(
            f"the packed copy of the codes cannot be written: {(str(error) or repr(error)).splitlines()[0]}",
            field=str(target.parent),
            expected=f"a folder to write to, with {sum(_sizes(split).values()) / 2**30:.2f} GiB free",
            fix=f"set {ENVIRONMENT} or packed_folder to one; or raise memory_limit_mib; or set form: streamed (slow)",
        ) from error


def _publish(target: Path, split: SplitShards) -> None:
    try:
        durable.publish_folder(target, lambda folder: _write(folder, split), lambda folder: _verify(folder, split))
    except StorageError:
        if not _is_sound(target, split):  # else another process made it, on a disk whose lock does nothing
            raise


def _write(folder: Path, split: SplitShards) -> None:
    hashes: dict[str, Any] = {}
    with tqdm(total=split.rows, desc="packing codes", delay=2, unit="row") as progress:
        for shard in split.read():
            for name, values in arrays_of(shard, split.spec).items():
                content = values.tobytes()
                hashes.setdefault(name, hashlib.sha256()).update(content)
                with open(folder / name, "ab") as file:
                    file.write(content)
            progress.update(len(shard.image_ids))
    files = {name: {"sha256": each.hexdigest(), **_stamp(folder / name)} for name, each in hashes.items()}
    index = {"format": _FORMAT, "identity": split.identity, "files": files}
    durable.write_bytes(folder / _INDEX, json.dumps({"index": index, "sha256": digest(index)}, indent=1).encode())


def _verify(folder: Path, split: SplitShards) -> None:
    index = _read_index(folder, split)
    if index is None or any(durable.file_sha256(folder / name) != each["sha256"] for name, each in index.items()):
        raise DataError("what was read back differs from what was written", field=str(folder), fix="check the disk")


def _is_sound(folder: Path, split: SplitShards) -> bool:
    """Whether the copy is complete: each file has its size, and its time of writing or else its SHA-256."""
    index = _read_index(folder, split)
    return index is not None and all(
        _stamp(folder / name) == {"bytes": each["bytes"], "mtime_ns": each["mtime_ns"]}
        or durable.file_sha256(folder / name) == each["sha256"]
        for name, each in index.items()
    )


def _read_index(folder: Path, split: SplitShards) -> dict[str, Any] | None:
    """The files of a copy of ``split`` by its index; None for another split's, a damaged index, or other sizes."""
    try:
        saved = json.loads((folder / _INDEX).read_bytes())
        index = saved["index"]
        files = index["files"]
        intact = saved["sha256"] == digest(index) and index["format"] == _FORMAT
        sizes = {name: (folder / name).stat().st_size for name in files}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if intact and index["identity"] == split.identity and sizes == _sizes(split) else None


def _sizes(split: SplitShards) -> dict[str, int]:
    return {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in column_types(split).items()}


def _stamp(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
