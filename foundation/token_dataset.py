"""Grids of codes on disk: parquet shards that any tool opens, with a manifest and the tokenizer that made them.

One parquet file is one commit: it appears whole or not at all, and its footer repeats the specification, the counts
and the failures, so that the manifest can be derived from the files. Reading verifies page checksums.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundation import durable
from foundation.code_positions import require_codes
from foundation.codes import CodeSpec, require_same_codes
from foundation.config import from_dict, to_dict
from foundation.errors import ContractError, DataError
from foundation.image_set import Failure
from foundation.json_files import read_json

_FOOTER = b"tessera"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """The content of one parquet file, one row per (image, view).

    Attributes:
        codes_BT: (B, T) integers, each in the codebook of its position; the order is that of ``CodeSpec``.
        image_ids: B stable names of the source images.
        views: (B,) 0 = centre, 1 = flip, 2.. = crops.
        labels: (B,) class numbers, or None.
        failures: images planned for this shard that could not be encoded.
    """

    codes_BT: np.ndarray
    image_ids: Sequence[str]
    views: np.ndarray
    labels: np.ndarray | None
    failures: Sequence[Failure] = ()


def code_dtype(codebook_size: int) -> Any:
    """uint16 up to 65,536 codes, else int32 (pyarrow types)."""
    return pa.uint16() if codebook_size <= 65_536 else pa.int32()


def write_shard(path: Path, shard: Shard, spec: CodeSpec) -> None:
    """Publish one shard, all or nothing.

    Raises:
        DataError: a code outside the codebook, or arrays of unequal length.
        StorageError: the disk refused.
    """
    table = _to_table(shard, spec)

    def verify(temporary: Path) -> None:
        if not pq.read_table(temporary, page_checksum_verification=True, partitioning=None).equals(table):
            raise DataError("what was read back differs from what was written", field=str(path), fix="check the disk")

    def write(temporary: Path) -> None:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True, row_group_size=65_536)

    durable.publish_file(path, write, verify)


def read_shard(path: Path, expected: CodeSpec) -> Shard:
    """Read one shard back, verifying its checksums and its contract.

    Raises:
        DataError: the file is damaged.
        ContractError: it was made by another tokenizer or preprocess.
    """
    if not path.is_file():
        raise DataError("the shard is missing", field=str(path), fix="run encode again: it makes what is missing")
    try:
        footer = json.loads(pq.read_schema(path).metadata[_FOOTER])
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        spec = from_dict(CodeSpec, footer["spec"])
        require_same_codes(expected, spec, owner="this run", other=f"the shard {path.name}")
        return _from_table(table, footer, spec)
    except ContractError:
        raise
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, str(error)) from error


def _from_table(table: pa.Table, footer: dict[str, Any], spec: CodeSpec) -> Shard:
    codes = table["codes"].combine_chunks()
    codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
    flat = codes.flatten().to_numpy(zero_copy_only=False)
    labels = table["label"].to_numpy() if footer["labelled"] else None
    failures = [Failure(**each) for each in footer["failures"]]
    views = table["view"].to_numpy()
    return Shard(flat.reshape(footer["rows"], spec.n_codes), table["image_id"].to_pylist(), views, labels, failures)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"the shard is damaged: {reason}", field=str(path), fix="delete this file and run encode again")


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Where shard ``index`` of a split lives."""
    return folder / "data" / split / f"part-{index:05d}.parquet"


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The published shards of a split, in order."""
    return sorted((folder / "data" / split).glob("part-*.parquet"))


def write_manifest(folder: Path, spec: CodeSpec) -> dict[str, Any]:
    """Derive ``manifest.json`` from the shards and publish it; its presence says that the dataset is complete."""
    splits: dict[str, Any] = {}
    for split_folder in sorted(each for each in (folder / "data").iterdir() if each.is_dir()):
        files: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        for path in shard_paths(folder, split_folder.name):
            shard = read_shard(path, spec)
            name = path.relative_to(folder).as_posix()
            files.append({"file": name, "rows": len(shard.image_ids), "sha256": durable.file_sha256(path)})
            failures += [to_dict(each) for each in shard.failures]
        n_rows = sum(each["rows"] for each in files)
        splits[split_folder.name] = {"rows": n_rows, "files": files, "failures": failures}
    manifest = {"format": 1, "contract": spec.contract, "spec": to_dict(spec), "splits": splits}
    durable.replace_file(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest


class TokenDataset:
    """One split of a token dataset, in memory.

    Attributes:
        spec: what the codes mean.
        codes_NT: (N, T) uint16 or int32.
        labels_N: (N,) int64, or None.
        image_ids, views_N: which image and view each row is.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        """Open ``folder``.

        Raises:
            DataError: no such dataset, an incomplete or damaged one, or no such split.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        self.spec = from_dict(CodeSpec, manifest["spec"])
        if split not in manifest["splits"]:
            raise DataError("no such split", field=str(folder), found=split, expected=", ".join(manifest["splits"]))
        entry = manifest["splits"][split]
        shards = [_read_listed(folder, each, self.spec) for each in entry["files"]]
        rows = sum(len(shard.image_ids) for shard in shards)
        if rows != entry["rows"] or rows == 0:
            raise DataError("has another number of rows than its manifest", field=str(folder), found=rows,
                            expected=entry["rows"], fix="run encode again")  # fmt: skip
        self.codes_NT = np.concatenate([shard.codes_BT for shard in shards])
        self.views_N = np.concatenate([shard.views for shard in shards])
        self.image_ids = [name for shard in shards for name in shard.image_ids]
        labelled = [shard.labels for shard in shards if shard.labels is not None]
        self.labels_N = np.concatenate(labelled).astype(np.int64) if labelled else None
        require_codes(self.codes_NT, self.spec, str(folder))

    def __len__(self) -> int:
        return len(self.codes_NT)

    @property
    def grids(self) -> np.ndarray:
        """Codes as ``tokenizer.decode`` takes them: (N, H, W), (N, H, W, D), or (N, T) for several levels."""
        return self.spec.grid(self.codes_NT)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete token dataset.

    Raises:
        DataError: there is none.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "the token dataset is not complete" if folder.is_dir() else "no such token dataset"
        raise DataError(what, field=str(folder), expected=f"a folder with {MANIFEST}", fix="run tessera encode")
    manifest = read_json(path, ("contract", "spec", "splits"), fix="delete it and run tessera encode: it is made again")
    spec = from_dict(CodeSpec, manifest["spec"])
    if spec.contract != manifest["contract"]:
        raise ContractError("the manifest's specification was edited", field=str(path), fix="run encode again")
    return manifest


def _read_listed(folder: Path, entry: dict[str, Any], spec: CodeSpec) -> Shard:
    """A shard whose bytes are the ones that the manifest lists."""
    path = folder / entry["file"]
    shard = read_shard(path, spec)
    if durable.file_sha256(path) != entry["sha256"]:
        raise _damaged(path, "its bytes are not the ones that the manifest lists")
    return shard


def _to_table(shard: Shard, spec: CodeSpec) -> pa.Table:
    n = len(shard.image_ids)
    require_codes(shard.codes_BT, spec)
    if len(shard.codes_BT) != n or len(shard.views) != n:
        raise DataError("codes, views and image_ids differ in length", field="shard", expected=n,
                        found=(len(shard.codes_BT), len(shard.views)))  # fmt: skip
    flat = pa.array(np.ascontiguousarray(shard.codes_BT).reshape(-1).astype(np.int64))
    flat = flat.cast(code_dtype(spec.codebook_size))  # a checked cast: it raises, it never wraps
    columns = {"codes": pa.FixedSizeListArray.from_arrays(flat, spec.n_codes)}
    if shard.labels is not None:
        columns["label"] = pa.array(shard.labels, pa.int64())
    columns["image_id"] = pa.array(list(shard.image_ids), pa.string())
    columns["view"] = pa.array(shard.views, pa.uint8())
    schema = _features(spec, labelled=shard.labels is not None).arrow_schema
    footer = {
        "format": 1,
        "contract": spec.contract,
        "spec": to_dict(spec),
        "rows": n,
        "labelled": shard.labels is not None,
        "failures": [to_dict(each) for each in shard.failures],
    }
    metadata = {**(schema.metadata or {}), _FOOTER: json.dumps(footer, sort_keys=True).encode()}
    return pa.table(columns, schema=schema.with_metadata(metadata))


def _features(spec: CodeSpec, *, labelled: bool) -> Any:
    from datasets import ClassLabel, Features, List, Value

    code = Value("uint16" if code_dtype(spec.codebook_size) == pa.uint16() else "int32")
    fields: dict[str, Any] = {"codes": List(code, length=spec.n_codes)}
    if labelled:
        fields["label"] = ClassLabel(names=list(spec.class_names))
    return Features({**fields, "image_id": Value("string"), "view": Value("uint8")})
