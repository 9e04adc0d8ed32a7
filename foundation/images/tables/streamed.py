"""Parquet files of a split whose rows are streamed: on a disk, by address, or by a name of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from foundation.config import digest
from foundation.errors import DataError, nearest
from foundation.images.source_config import DatasetData
from foundation.images.tables.files import local_files
from foundation.images.tables.row_groups import ParquetRows
from foundation.paths import expand, is_remote, without_secrets
from foundation.storage.remote.files import LocalFile, RemoteFile, StoredFile, stream_cache
from foundation.storage.remote.objects import described_objects, list_objects

_FIELD = "data.source.path"
_WAYS_OUT = {
    "arrow": "leave streaming out: Arrow files are mapped into memory and not copied",
    "csv": "leave streaming out: the table is read whole, and images where it names them",
    "json": "leave streaming out: the table is read whole, and images where it names them",
    "imagefolder": "--data.source.type folder reads images in folders, and copies nothing",
    "webdataset": "--data.source.type archives streams tar archives",
}


def open_streamed(config: DatasetData, split: str, cache_gib: float) -> tuple[ParquetRows, str, Sequence[Path]]:
    """Open the rows of a split in place.

    Returns:
        The rows, a fingerprint of the files, and local tables that belong to no split.

    Raises:
        DataError: no such file or split, or files of a format that has no access by row.
    """
    path = Path(expand(config.path, _FIELD))
    if not is_remote(config.path) and path.exists():
        local = local_files(path, config, split)
        _require_parquet(local.kind, config.path)
        rows = ParquetRows([LocalFile(each) for each in local.paths], cache_gib)
        return rows, local.fingerprint, local.passed_over
    if is_remote(config.path):
        objects = list_objects(_pattern(config.path, config, split), ".parquet", _FIELD)
    else:
        objects = described_objects(_of_hub(config, split))
    cache = stream_cache(cache_gib)
    files: list[StoredFile] = [RemoteFile(each, cache, in_ranges=True) for each in objects]
    return ParquetRows(files, cache_gib), digest([(each.name, each.size, each.version) for each in objects]), ()


def _require_parquet(kind: str, found: str) -> None:
    if kind == "parquet":
        return
    fix = _WAYS_OUT.get(kind, "write the rows to parquet files, or the images to tar archives")
    raise DataError("cannot be streamed", field=_FIELD, found=f"{kind}: {found}", expected="parquet files", fix=fix)


def _pattern(address: str, config: DatasetData, split: str) -> str:
    """The address of a split's files: of the file or pattern that is given, or in the folder that is.

    In a folder, files belong to a split by the name of the file or of a folder in it, as ``datasets`` has it.
    """
    last = PurePosixPath(address.partition("?")[0]).name
    if any(each in address for each in "*{") or PurePosixPath(last).suffix:
        _require_parquet(PurePosixPath(last).suffix.removeprefix(".") or "parquet", without_secrets(address))
        if (config.split, config.validation_split) != ("train", None):
            raise DataError(
                "one file or pattern has one split, train",
                field="data.source.validation_split" if config.validation_split else "data.source.split",
                found=config.validation_split or config.split,
                fix="leave both split fields out (data.validation_share holds some out), or give the folder's address",
            )
        return address
    from datasets.data_files import get_data_patterns

    try:
        patterns = get_data_patterns(address.rstrip("/"))
    except FileNotFoundError as error:
        fix = "check the address, or give a pattern such as .../train-*.parquet"
        raise DataError("no such folder", field=_FIELD, found=without_secrets(address), fix=fix) from error
    names = [str(each) for each in patterns]
    if split not in names:
        field = "data.source.validation_split" if split == config.validation_split else "data.source.split"
        raise DataError("no such split", field=field, found=split, fix=nearest(split, names))
    return f"{address.rstrip('/')}/{patterns[split][0]}"


def _of_hub(config: DatasetData, split: str) -> list[str]:
    """Addresses of the files of a split of a hub dataset; nothing is downloaded but its card."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(config.path, config.config_name, revision=config.revision)
    except Exception as error:  # the library raises many kinds; the message is what helps
        what = f"cannot be opened: {error}"
        fix = "check the path and the name of the configuration; a hub dataset needs a network connection"
        raise DataError(what, field=_FIELD, found=config.path, fix=fix) from error
    _require_parquet(type(builder).__module__.rpartition(".")[2], config.path)
    files: Mapping[str, Any] = {str(name): each for name, each in (builder.config.data_files or {}).items()}
    if split not in files:
        field = "data.source.validation_split" if split == config.validation_split else "data.source.split"
        raise DataError("no such split", field=field, found=split, fix=nearest(split, list(files)))
    return [str(each) for each in files[split]]
