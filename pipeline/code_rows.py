"""Rows of codes to decode: a token dataset's, or anybody's own in a file of NumPy or parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundation.codes.dataset import MANIFEST, TokenAccess, TokenDataset, read_manifest
from foundation.codes.shards import codes_of, read_footer
from foundation.codes.spec import CodeSpec, require_same_codes
from foundation.config import digest, from_dict
from foundation.errors import CheckpointError, ConfigError, DataError, nearest
from foundation.storage.durable import file_sha256

_STREAMED = TokenAccess(form="streamed", memory_limit_mib=256)


@dataclass(frozen=True)
class CodeRows:
    """Rows of codes, read when they are asked for.

    Attributes:
        name: of the folder that their images get; empty for none.
        n_rows: how many.
        identity: SHA-256 of what they are.
        read: rows ``start..stop`` as (B, T) integers.
        about: what is known of rows ``start..stop``, an entry each: ``image_id``, ``view``, ``label``.
    """

    name: str
    n_rows: int
    identity: str
    read: Callable[[int, int], np.ndarray]
    about: Callable[[int, int], Sequence[dict[str, Any]]]


def find_tokenizer(codes: Path, named: str | None) -> Path:
    """The folder of the tokenizer that decodes ``codes``: the one that is named, or the dataset's own.

    Raises:
        ConfigError: none is named for a file.
        CheckpointError: the named one is not there.
    """
    if named is None and not codes.is_dir():
        raise ConfigError("is needed for a file of codes", field="--tokenizer",
                          fix="name the run or the tokenizer folder that the codes are of")  # fmt: skip
    root = codes if named is None else Path(named)
    choices = [root / "codes" / "tokenizer", root / "tokenizer", root] if named is None else [root / "tokenizer", root]
    found = next((each for each in choices if (each / "config.json").is_file()), None)
    if found is None:
        raise CheckpointError("holds no tokenizer", field=str(root), fix="name one with --tokenizer")
    return found


def open_rows(codes: Path, spec: CodeSpec, split: str | None = None) -> list[CodeRows]:
    """The rows of a token dataset (or of a run's), one entry for each split, or those of a file.

    Args:
        codes: the dataset, run folder, ``.npy`` or ``.parquet``.
        spec: of the tokenizer that will decode them.
        split: of a dataset; None takes all.

    Raises:
        DataError: nothing there that can be used, or codes of another shape than the tokenizer's.
        ContractError: codes of another tokenizer.
        ConfigError: a split of a file.
    """
    if codes.is_dir():
        folder = codes if (codes / MANIFEST).exists() else codes / "codes"
        return _dataset_rows(folder if folder.is_dir() else codes, spec, split)
    if split is not None:
        raise ConfigError("is for token datasets", field="--split", found=split, fix="leave it out for a file")
    if not codes.is_file() or codes.suffix not in (".npy", ".parquet"):
        raise DataError("is nothing that holds codes", field=str(codes),
                        expected="a token dataset, a run folder, a .npy or a .parquet file")  # fmt: skip
    return [_array_rows(codes, spec) if codes.suffix == ".npy" else _parquet_rows(codes, spec)]


def _dataset_rows(folder: Path, spec: CodeSpec, split: str | None) -> list[CodeRows]:
    entries = read_manifest(folder)["splits"]
    names = [split] if split is not None else [name for name, entry in entries.items() if entry["rows"]]
    return [_split_rows(folder, spec, name) for name in names]


def _split_rows(folder: Path, spec: CodeSpec, split: str) -> CodeRows:
    dataset = TokenDataset(folder, split, _STREAMED)
    require_same_codes(spec, dataset.spec, owner="the tokenizer", other="the token dataset")
    classes = dataset.spec.class_names

    def about(start: int, stop: int) -> list[dict[str, Any]]:
        rows = np.arange(start, stop)
        known: list[dict[str, Any]] = [
            {"image_id": image_id, "view": int(view)}
            for image_id, view in zip(dataset.image_ids[start:stop], dataset.views_N[rows], strict=True)
        ]
        if dataset.labels_N is not None:
            for entry, label in zip(known, dataset.labels_N[rows], strict=True):
                entry["label"] = classes[int(label)]
        return known

    identity = digest([split, read_manifest(folder)["splits"][split]["files"]])
    return CodeRows(split, len(dataset), identity, lambda start, stop: dataset.codes_NT[np.arange(start, stop)], about)


def _array_rows(path: Path, spec: CodeSpec) -> CodeRows:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read as a NumPy array: {error}", field=str(path)) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim < 2:
        found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else "an archive of several arrays"
        raise DataError("holds no codes", field=str(path), found=found, expected="whole numbers, (images, ...)")
    allowed = {(spec.n_codes,), spec.shape, *(level.shape for level in spec.levels if len(spec.levels) == 1)}
    if array.shape[1:] not in allowed:
        raise DataError("holds codes of another shape than the tokenizer's", field=str(path), found=array.shape[1:],
                        expected=" or ".join(map(str, sorted(allowed, key=len))))  # fmt: skip
    flat = array.reshape(len(array), spec.n_codes)
    return CodeRows("", len(flat), file_sha256(path), lambda start, stop: np.array(flat[start:stop]), _nothing)


def _parquet_rows(path: Path, spec: CodeSpec) -> CodeRows:
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as parquet: {error}", field=str(path)) from error
    if "codes" not in table.column_names:
        raise DataError("has no column codes", field=str(path), fix=nearest("codes", table.column_names))
    if b"tessera" in (table.schema.metadata or {}):  # a file of a token dataset says whose codes it holds
        theirs = from_dict(CodeSpec, read_footer(path)["spec"])
        require_same_codes(spec, theirs, owner="the tokenizer", other=f"the file {path.name}")
    lengths = pc.unique(pc.list_value_length(table["codes"])).to_pylist() if _is_list(table) else []
    if lengths != [spec.n_codes]:
        raise DataError("holds rows of another length than the tokenizer's", field=f"{path}: codes",
                        found=f"{table.schema.field('codes').type}, lengths {lengths}",
                        expected=f"lists of {spec.n_codes} whole numbers")  # fmt: skip
    codes_NT = codes_of(table["codes"], spec)
    known = table.select([name for name in ("image_id", "view") if name in table.column_names])

    def about(start: int, stop: int) -> list[dict[str, Any]]:
        return known.slice(start, stop - start).to_pylist() if known.num_columns else _nothing(start, stop)

    return CodeRows("", len(codes_NT), file_sha256(path), lambda start, stop: codes_NT[start:stop], about)


def _is_list(table: pa.Table) -> bool:
    kind = table.schema.field("codes").type
    several = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    whole = several and pa.types.is_integer(kind.value_type)
    return bool(whole and len(table) and not table["codes"].null_count and not _flat(table).null_count)


def _flat(table: pa.Table) -> pa.ChunkedArray:
    return pc.list_flatten(table["codes"])


def _nothing(start: int, stop: int) -> list[dict[str, Any]]:
    return [{} for _ in range(start, stop)]
