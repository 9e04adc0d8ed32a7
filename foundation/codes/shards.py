"""Shards: grids of codes as parquet files.

One file is one commit: it appears complete or not at all. Its footer holds the specification, the counts and the
failures, from which the manifest is derived. Reading verifies page checksums.

Rows are view by view: all images of the file in their first view, then all in the second. Files, images and views
follow the plan, so the rows of a split have one order on any number of workers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundation.codes.spec import CodeSpec, require_codes, require_same_codes
from foundation.config import from_dict, to_dict
from foundation.errors import DataError, TesseraError, way_out
from foundation.images.failures import Failure
from foundation.storage import durable
from foundation.storage.places import LocalPlace, Place
from foundation.storage.remote.files import Seekable

_FOOTER = b"tessera"
AGAIN = "restore it, or move it away and run tessera encode, which writes it again"
ROW_GROUP = 2048
"""rows that are read together: few, for random access; files are 4 % larger than with 16,384 (256 codes a row)"""


@dataclass(frozen=True)
class Shard:
    """The content of one parquet file, one row per (image, view).

    Attributes:
        codes_BT: (B, T) integers, each in the codebook of its position; the order is that of ``CodeSpec``.
        image_ids: B stable names of the source images.
        views: (B,) 0 = centre, 1 = flip, 2.. = crops.
        labels: (B,) class numbers, or None.
        failures: images planned for this shard that could not be encoded.
        planned: images planned for it, written and failed; None if they were not counted.
        plan: identity of its plan; empty without one.
        grids: (B,) index of each image's grid in ``CodeSpec.grids``; None where there is one.
    """

    codes_BT: np.ndarray
    image_ids: Sequence[str]
    views: np.ndarray
    labels: np.ndarray | None
    failures: Sequence[Failure] = ()
    planned: int | None = None
    plan: str = ""
    grids: np.ndarray | None = None

    @property
    def n_images(self) -> int:
        """Different images in the rows."""
        return len(set(self.image_ids))


def code_dtype(spec: CodeSpec) -> np.dtype:
    """uint16 up to 65,536 codes, else int32; little-endian."""
    return np.dtype("<u2" if spec.codebook_size <= 65_536 else "<i4")


def write_shard(path: Path, shard: Shard, spec: CodeSpec) -> None:
    """Publish one shard, all or nothing.

    Raises:
        DataError: a code outside the codebook, or arrays of unequal length.
        StorageError: the disk refused.
    """
    publish_shard(LocalPlace(path.parent), path.name, shard, spec)


def publish_shard(place: Place, name: str, shard: Shard, spec: CodeSpec) -> None:
    """Publish one shard at a place, all or nothing. The first writer wins.

    Raises:
        DataError: as ``write_shard``.
        StorageError: other content is there, or the disk refused.
        RemoteError: the store refused.
    """
    table = _to_table(shard, spec)

    def verify(temporary: Path) -> None:
        if not pq.read_table(temporary, page_checksum_verification=True, partitioning=None).equals(table):
            what, field = "what was read back differs from what was written", f"{place.shown}/{name}"
            raise DataError(what, field=field, fix="check the disk")

    place.publish_file(name, lambda temporary: _write_table(table, temporary), verify)


def replace_shard(path: Path, shard: Shard, spec: CodeSpec) -> None:
    """Replace a shard in one step.

    Raises:
        DataError: as ``write_shard``.
        StorageError: the disk refused; the old shard is untouched.
    """
    durable.replace_file(path, shard_bytes(shard, spec))


def shard_bytes(shard: Shard, spec: CodeSpec) -> bytes:
    """Content of a shard's file. Raises DataError as ``write_shard``."""
    sink = pa.BufferOutputStream()
    _write_table(_to_table(shard, spec), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_footer(path: Path) -> dict[str, Any]:
    """What a shard says of itself: ``rows``, ``planned``, ``failures``, ``contract``, ``spec``, ``plan``, ``labelled``.

    Raises:
        DataError: the file is missing or damaged.
    """
    with reading(path):
        return dict(json.loads(pq.read_schema(path).metadata[_FOOTER]))


def read_footer_at(place: Place, name: str) -> dict[str, Any]:
    """As ``read_footer``, of a file at a place; no more is read of one in a store.

    Raises:
        DataError: the file is damaged.
        RemoteError: it is missing or cannot be read.
    """
    if isinstance(place, LocalPlace):
        return read_footer(place.folder / name)
    try:
        return dict(json.loads(pq.read_schema(Seekable(place.stored(name))).metadata[_FOOTER]))
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        if isinstance(error, TesseraError):
            raise
        raise damaged_shard(f"{place.shown}/{name}", str(error)) from error


def read_shard(path: Path, expected: CodeSpec) -> Shard:
    """Read one shard back, verifying its checksums and its contract.

    Raises:
        DataError: the file is damaged.
        ContractError: it was made by another tokenizer or preprocess.
    """
    with reading(path):
        metadata = pq.read_schema(path).metadata or {}
        what = "was saved by another program, which left out what the shard says of itself"
        DataError.unless(_FOOTER in metadata, what, field=str(path), fix=AGAIN)
        footer = json.loads(metadata[_FOOTER])
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        spec = from_dict(CodeSpec, footer["spec"])
        require_same_codes(expected, spec, owner="this run", other=f"the shard {path.name}")
        return _from_table(table, footer, spec)


def codes_of(column: pa.ChunkedArray, spec: CodeSpec) -> np.ndarray:
    """The column ``codes`` of any rows as an array (B, T)."""
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, spec.n_codes)


def require_grids(grids_B: np.ndarray | None, spec: CodeSpec, n_rows: int, field: str = "grid") -> None:
    """Refuse grids of rows that are missing, too many, or none of the specification's.

    Raises:
        DataError: naming ``field``.
    """
    several = spec.n_grids > 1
    what, expected = "are not there" if several else "are there, where images have one shape", f"{n_rows} numbers"
    DataError.unless((grids_B is not None) == several, f"grids {what}", field=field, expected=expected)
    if grids_B is None:
        return
    low, high = (int(grids_B.min()), int(grids_B.max())) if len(grids_B) else (0, 0)
    right = len(grids_B) == n_rows and 0 <= low <= high < spec.n_grids
    found, expected = f"{len(grids_B)} of {low}..{high}", f"{n_rows} of 0..{spec.n_grids - 1}, the shapes of the images"
    DataError.unless(right, "are no grids of the images", field=field, found=found, expected=expected)


def is_labelled(path: Path) -> bool:
    """Whether a shard has labels.

    Raises:
        DataError: the file is missing or damaged.
    """
    with reading(path):
        return "label" in pq.read_schema(path).names


def _from_table(table: pa.Table, footer: dict[str, Any], spec: CodeSpec) -> Shard:
    labels = table["label"].to_numpy() if footer["labelled"] else None
    failures = [Failure(**each) for each in footer["failures"]]
    views = table["view"].to_numpy()
    codes, ids = codes_of(table["codes"], spec), table["image_id"].to_pylist()
    grids = table["grid"].to_numpy() if spec.n_grids > 1 else None
    return Shard(codes, ids, views, labels, failures, footer.get("planned"), footer.get("plan", ""), grids)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what readers of a parquet file raise into ``DataError``: the shard is missing or damaged."""
    require_file(path)
    try:
        yield
    except TesseraError:
        raise
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        if (fix := way_out(error, AGAIN)) != AGAIN:
            raise DataError(f"cannot be read: {error}", field=str(path), fix=fix) from error
        raise damaged_shard(path, str(error)) from error


def require_file(path: Path) -> None:
    """Raise ``DataError`` unless the shard is there."""
    if not path.is_file():
        raise DataError("the shard is missing", field=str(path), fix="run tessera encode: it writes missing shards")


def damaged_shard(path: Path | str, reason: str) -> DataError:
    """The error for a file whose content is not what was written."""
    return DataError(f"the shard is damaged: {reason}", field=str(path), fix=AGAIN)


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Path of shard ``index`` of a split."""
    return folder / shard_name(split, index)


def shard_name(split: str, index: int) -> str:
    """Name of shard ``index`` of a split in its dataset."""
    return f"data/{split}/part-{index:05d}.parquet"


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The published shards of a split, in order."""
    return sorted((folder / "data" / split).glob("part-*.parquet"))


def _write_table(table: pa.Table, where: Path | pa.BufferOutputStream) -> None:
    pq.write_table(table, where, compression="zstd", write_page_checksum=True, row_group_size=ROW_GROUP)


def _to_table(shard: Shard, spec: CodeSpec) -> pa.Table:
    n = len(shard.image_ids)
    require_codes(shard.codes_BT, spec)
    if len(shard.codes_BT) != n or len(shard.views) != n:
        found = (len(shard.codes_BT), len(shard.views))
        raise DataError("codes, views and image_ids differ in length", field="shard", found=found, expected=n)
    require_grids(shard.grids, spec, n)
    flat = pa.array(np.ascontiguousarray(shard.codes_BT).reshape(-1).astype(np.int64))
    flat = flat.cast(pa.from_numpy_dtype(code_dtype(spec)))  # checked: it raises and never wraps
    columns = {"codes": pa.FixedSizeListArray.from_arrays(flat, spec.n_codes)}
    if shard.labels is not None:
        columns["label"] = pa.array(shard.labels, pa.int64())
    columns["image_id"] = pa.array(list(shard.image_ids), pa.string())
    columns["view"] = pa.array(shard.views, pa.uint8())
    if shard.grids is not None:
        columns["grid"] = pa.array(shard.grids, pa.int8())
    labelled = shard.labels is not None
    schema = _features(spec, labelled=labelled).arrow_schema
    footer = {
        "format": 1,
        "contract": spec.contract,
        "spec": to_dict(spec),
        "rows": n,
        "labelled": labelled,
        "failures": [to_dict(each) for each in shard.failures],
        "planned": shard.planned,
        "plan": shard.plan,
    }
    metadata = {**(schema.metadata or {}), _FOOTER: json.dumps(footer, sort_keys=True).encode()}
    return pa.table(columns, schema=schema.with_metadata(metadata))


def _features(spec: CodeSpec, *, labelled: bool) -> Any:
    from datasets import ClassLabel, Features, List, Value

    fields: dict[str, Any] = {"codes": List(Value(code_dtype(spec).name), length=spec.n_codes)}
    if labelled:
        fields["label"] = ClassLabel(names=list(spec.class_names))
    grid = {"grid": Value("int8")} if spec.n_grids > 1 else {}
    return Features({**fields, "image_id": Value("string"), "view": Value("uint8"), **grid})
