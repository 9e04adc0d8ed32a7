"""Codes of any origin: token datasets, what ``datasets`` saved, parquet and NumPy files.

- a token dataset, or the run folder that holds one
- a folder written by ``save_to_disk`` of ``datasets``, of one split or of several
- a parquet file, or a folder of them: a column ``codes``, flat or nested lists; ``label``, ``image_id``, ``view``
- ``.npy`` or ``.npz``, see ``foundation.codes.arrays``
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from foundation.codes.arrays import open_arrays
from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import MANIFEST, read_manifest
from foundation.codes.shards import read_footer
from foundation.codes.spec import CodeSpec
from foundation.codes.tables import CodeBlock, ParquetRows, block_of, class_names_of, require_codes_column
from foundation.config import digest, from_dict
from foundation.errors import DataError
from foundation.hardware import TokenAccess
from foundation.storage.durable import file_sha256

SPLITS = ("train", "validation", "val", "valid", "test")
_STREAMED = TokenAccess(form="streamed", memory_limit_mib=256)
_NO_CODES = re.compile(r"\.|plan-[0-9a-f]{16}\.parquet$")
"""names of parquet files beside the codes of a token dataset: hidden ones, and the images of its plan"""
_FORMS = "a token dataset, a run folder, a folder saved by datasets, .parquet, .npy or .npz"
_WAYS = {
    ".jsonl": "datasets.load_dataset('json', data_files=FILE, split='train').to_parquet('codes.parquet')",
    ".json": "datasets.load_dataset('json', data_files=FILE, split='train').to_parquet('codes.parquet')",
    ".csv": "numpy.save('codes.npy', numpy.loadtxt(FILE, delimiter=',', dtype='int64'))",
    ".pt": "numpy.save('codes.npy', torch.load(FILE, weights_only=True).numpy())",
    ".pth": "numpy.save('codes.npy', torch.load(FILE, weights_only=True).numpy())",
    ".safetensors": "numpy.save('codes.npy', safetensors.numpy.load_file(FILE)['codes'])",
    ".arrow": "datasets.Dataset.from_file(FILE).to_parquet('codes.parquet')",
}


@dataclass(frozen=True)
class CodeRows:
    """Rows of codes of one split, read on demand.

    Attributes:
        split: its name; empty where the source has no splits.
        n_rows: number of rows.
        where: names the rows in messages.
        read: rows ``start..stop``.
        files: the files that hold the rows.
        class_names: names of numbered labels; empty where the source has none.
        spec: what the codes mean, where the source says so.
        listed: what the manifest lists of a split of a token dataset.
    """

    split: str
    n_rows: int
    where: str
    read: Callable[[int, int], CodeBlock]
    files: tuple[Path, ...]
    class_names: tuple[str, ...] = ()
    spec: CodeSpec | None = None
    listed: Any = field(default=None, repr=False)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of what holds the rows."""
        if self.listed is not None:
            return digest([self.split, self.listed])
        hashes = [file_sha256(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else digest(hashes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row's codes as the source holds them: (T,), (H, W) or (H, W, D)."""
        return self.read(0, 1).codes.shape[1:]


def open_codes(source: Path, field: str = "codes") -> list[CodeRows]:
    """Open a source of codes, one entry for each split that has rows.

    Args:
        source: the folder or file.
        field: names it in messages.

    Raises:
        DataError: nothing there, another form, no rows, or an unfinished or damaged dataset.
    """
    if not source.exists():
        raise DataError("no such folder or file", field=field, found=str(source), expected=_FORMS)
    found = [each for each in _open(source, field) if each.n_rows]
    DataError.unless(bool(found), "holds no rows", field=field, found=str(source), expected="at least two rows")
    return found


def _open(source: Path, field: str) -> list[CodeRows]:
    if source.is_file():
        return [_open_file(source, field)]
    if (source / MANIFEST).is_file():
        return _dataset_rows(source)
    if (source / "plan.json").is_file() or (source / "recipe.yaml").is_file():
        inner = source / "codes" if (source / "recipe.yaml").is_file() else source
        return _dataset_rows(inner)  # says so where it is not complete
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        return _saved_rows(source)
    files = [path for path in sorted(source.rglob("*.parquet")) if _NO_CODES.match(path.name) is None]
    if not files:
        raise DataError("holds no codes", field=field, found=f"the folder {source}", expected=_FORMS)
    return [_parquet_rows(paths, split, str(source)) for split, paths in _by_split(source, files).items()]


def _open_file(path: Path, field: str) -> CodeRows:
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet_rows([path], "", str(path))
    if ending in (".npy", ".npz"):
        arrays = open_arrays(path)
        return CodeRows("", len(arrays.codes), str(path), arrays.read, (path,), arrays.class_names)
    fix = f"convert it: {_WAYS[ending]}" if ending in _WAYS else None
    raise DataError("holds no codes that can be read", field=field, found=str(path), expected=_FORMS, fix=fix)


def _dataset_rows(folder: Path) -> list[CodeRows]:
    found = []
    for split, entry in read_manifest(folder)["splits"].items():
        if entry["rows"]:
            dataset = TokenDataset(folder, split, _STREAMED)
            files = tuple(folder / each["file"] for each in entry["files"] if each["rows"])
            read, names = _reader_of(dataset), dataset.spec.class_names
            rows = CodeRows(
                split, len(dataset), f"{folder} ({split})", read, files, names, dataset.spec, entry["files"]
            )
            found.append(rows)
    return found


def _reader_of(dataset: TokenDataset) -> Callable[[int, int], CodeBlock]:
    def read(start: int, stop: int) -> CodeBlock:
        rows = np.arange(start, min(stop, len(dataset)))
        labels = None if dataset.labels_N is None else dataset.labels_N[rows].tolist()
        grids = None if dataset.grids_N is None else dataset.grids_N[rows]
        return CodeBlock(dataset.codes_NT[rows], labels, dataset.image_ids[start:stop], dataset.views_N[rows], grids)

    return read


def _saved_rows(folder: Path) -> list[CodeRows]:
    """Rows of ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``; its files are mapped, not copied."""
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # the library also raises the errors of its formats
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DataError(f"cannot be opened by datasets: {reason}", field=str(folder), fix="save it again") from error
    several = {"": loaded} if isinstance(loaded, Dataset) else dict(loaded)
    return [_saved_split(folder, name, dataset) for name, dataset in several.items()]


def _saved_split(folder: Path, split: str, dataset: Any) -> CodeRows:
    where = f"{folder} ({split})" if split else str(folder)
    require_codes_column(dataset.column_names, where)
    names = getattr(dataset.features.get("label"), "names", None) or ()
    columns = [name for name in dataset.column_names if name in ("codes", "label", "image_id", "view")]
    table = dataset.select_columns(columns).with_format("arrow")
    files = tuple(sorted({Path(each["filename"]) for each in dataset.cache_files}))

    def read(start: int, stop: int) -> CodeBlock:
        return block_of(table[start:stop], where)

    return CodeRows(split, len(dataset), where, read, files, tuple(names))


def _parquet_rows(paths: list[Path], split: str, source: str) -> CodeRows:
    where = f"{source} ({split})" if split else source
    rows = ParquetRows(paths)
    require_codes_column(rows.schema.names, where)
    footers = [from_dict(CodeSpec, read_footer(path)["spec"]) for path in paths if _has_footer(path)]
    spec = footers[0] if len(footers) == len(paths) and len({each.contract for each in footers}) == 1 else None
    names = class_names_of(rows.schema) or (spec.class_names if spec is not None else ())
    for path in paths[1:]:
        what, found = "has other class names than the first file", class_names_of(pq.read_schema(path))
        same = found == class_names_of(rows.schema)
        fix = "write the files with one list of classes, or with classes as text"
        DataError.unless(same, what, field=str(path), found=found, expected=class_names_of(rows.schema), fix=fix)

    def read(start: int, stop: int) -> CodeBlock:
        return block_of(rows.read(start, stop), where)

    return CodeRows(split, len(rows), where, read, tuple(paths), names, spec)


def _has_footer(path: Path) -> bool:
    return b"tessera" in (pq.read_schema(path).metadata or {})


def _by_split(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Files by the split that a folder, or the beginning of the name, says; all in one where none does.

    Raises:
        DataError: only some of the files name a split.
    """
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if "" in found and len(found) > 1:
        some, fix = found[""][0], "move the others into folders train and validation too, or give one file"
        what = "names no split, where other files do"
        raise DataError(what, field=str(some), found=", ".join(name for name in found if name), fix=fix)
    return found


def _split_of(path: Path) -> str:
    words = [*path.parts[:-1], re.split(r"[-_.]", path.name)[0]]
    return next((word for word in words if word in SPLITS), "")
