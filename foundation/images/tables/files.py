"""Files of local datasets: which files a split consists of, and a fingerprint of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.config import digest
from foundation.errors import DataError, nearest
from foundation.images.kinds import HEAD_BYTES, kind_of, way_to_open
from foundation.images.source_config import DatasetData

_FIELD = "data.source.path"
_KINDS = {
    **{".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"},
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
}
_OF_N = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..*)?")
_BLOCK, _N_BLOCKS, _MOST_SAMPLED = 1 << 16, 16, 10_000


@dataclass(frozen=True)
class LocalFiles:
    """The files of one split.

    Attributes:
        kind: ``parquet``, ``arrow``, ``csv`` or ``json``; the name of another module of ``datasets`` otherwise.
        paths: in the order of the rows.
        root: the folder, or the folder of the one file.
        fingerprint: of the files' names, sizes and contents.
        passed_over: tables in the folder that belong to no split.
    """

    kind: str
    paths: Sequence[Path]
    root: Path
    fingerprint: str
    passed_over: Sequence[Path] = ()


def local_files(path: Path, config: DatasetData, split: str) -> LocalFiles:
    """The files of a split.

    Args:
        path: a file or folder that exists.
        config: which configuration; its fields are named in errors.
        split: name of the split; a slice such as ``train[:100]`` is left to ``datasets``.

    Raises:
        DataError: a file that is no table, a folder without data, no such split, or a shard that is missing.
    """
    if path.is_file():
        _require_train(config)
        return _found(_kind_of_file(path), [path], path.parent)
    if (path / "dataset_dict.json").is_file():
        names = _listed(path / "dataset_dict.json", "splits")
        _require_split(split, names, path, config)
        return _saved(path / split)
    if (path / "state.json").is_file():
        _require_split(split, ["train"], path, config)
        return _saved(path)
    kind, files = _resolved(path, config)
    if split not in files:
        if re.fullmatch(r"\w+(\.\w+)*", split):
            _require_split(split, list(files), path, config)
        return _found("slice", [each for every in files.values() for each in every], path)
    _require_shards(files[split])
    if kind == "text":
        expected = "parquet, Arrow, CSV or JSON files"
        raise DataError("holds text files, not tables", field=_FIELD, found=str(path), expected=expected)
    if kind == "imagefolder":
        _require_no_tables(path)
    if kind in ("csv", "json") and any(each.suffix.lower() not in _KINDS for each in files[split]):
        kind = "compressed"
    taken = {absolute(each) for every in files.values() for each in every}
    others = [] if kind == "imagefolder" else [each for each in _tables_in(path) if absolute(each) not in taken]
    return dataclasses.replace(_found(kind, files[split], path), passed_over=others)


def cache_folder(files: LocalFiles) -> Path:
    """A folder for copies of these very files: another one if one of them is replaced, wherever they are."""
    import datasets

    states = [(str(path.absolute()), *_state(path)) for path in files.paths]
    return Path(datasets.config.HF_DATASETS_CACHE) / "tessera" / digest([files.fingerprint, states])[:24]


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _found(kind: str, paths: Sequence[Path], root: Path) -> LocalFiles:
    sampled = len(paths) <= _MOST_SAMPLED
    entries = [(_name(each, root), each.stat().st_size, _sample(each) if sampled else "") for each in paths]
    return LocalFiles(kind, paths, root, digest(entries))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _sample(path: Path) -> str:
    """Hash of a file: of all of it, or of blocks at equal distances, the first and last ones included."""
    size, found = path.stat().st_size, hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            if size <= _BLOCK * _N_BLOCKS:
                found.update(file.read())
            else:
                for i in range(_N_BLOCKS):
                    file.seek(i * (size - _BLOCK) // (_N_BLOCKS - 1))
                    found.update(file.read(_BLOCK))
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DataError(what, field=_FIELD, found=str(path), fix="check its permissions") from error
    return found.hexdigest()


def _kind_of_file(path: Path) -> str:
    kind = _KINDS.get(path.suffix.lower())
    if kind is not None:
        return kind
    try:
        with open(path, "rb") as file:
            found = kind_of(file.read(HEAD_BYTES))
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DataError(what, field=_FIELD, found=str(path), fix="check its permissions") from error
    if found is not None and found.name in ("a parquet file", "an Arrow file"):
        return found.name.split()[1].lower()
    name, fix = way_to_open(path)
    if found is not None and found.is_read:
        name, fix = f"an image ({found.name})", "--data.source.type folder reads the folder that holds it"
    elif found is not None and name == "a file":
        name, fix = found.name, found.fix
    expected = "a parquet, Arrow, CSV or JSON file, or a folder of them"
    raise DataError(f"is {name}, not a table", field=_FIELD, found=str(path), expected=expected, fix=fix)


def _require_train(config: DatasetData) -> None:
    if (config.split, config.validation_split) == ("train", None):
        return
    raise DataError(
        "one file has one split, train",
        field="data.source.validation_split" if config.validation_split else "data.source.split",
        found=config.validation_split or config.split,
        fix="leave both split fields out (data.validation_share holds some out), or give a folder with a file each",
    )


def _require_split(split: str, names: Sequence[str], path: Path, config: DatasetData) -> None:
    if split in names:
        return
    field = "data.source.validation_split" if split == config.validation_split else "data.source.split"
    raise DataError("no such split", field=field, found=f"{split} in {path}", fix=nearest(split, names))


def _listed(path: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"is damaged: {error}", field=str(path), fix="save the dataset again") from error


def _saved(folder: Path) -> LocalFiles:
    """The files of a folder of ``save_to_disk``, by its list: other files in it are of earlier saves or of caches."""
    names = [str(each["filename"]) for each in _listed(folder / "state.json", "_data_files")]
    paths = [folder / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    fix = "copy the folder again"
    DataError.unless(not missing, "lacks files", field=_FIELD, found=f"{folder}: {', '.join(missing)}", fix=fix)
    return _found("arrow", paths, folder)


def _resolved(path: Path, config: DatasetData) -> tuple[str, dict[str, list[Path]]]:
    """Kind and files of each split of a folder, by the rules of ``datasets``: its card, or names of files."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(path), config.config_name)
    except ValueError as error:
        if "BuilderConfig" in str(error) or "Config name is missing" in str(error):
            field = "data.source.config_name"
            raise DataError(str(error).splitlines()[0], field=field, found=config.config_name) from error
        raise _unopened(path, error) from error
    except Exception as error:  # the library raises many kinds
        raise _unopened(path, error) from error
    kind = type(builder).__module__.rpartition(".")[2]
    found = builder.config.data_files or {}
    return kind, {str(split): [Path(each) for each in names] for split, names in found.items()}


def _unopened(path: Path, error: Exception) -> DataError:
    endings = Counter(each.suffix.lower() for each in path.rglob("*") if each.is_file())
    if not endings:
        return DataError("the folder is empty", field=_FIELD, found=str(path), fix="check the path")
    ending, n = endings.most_common(1)[0]
    name, fix = way_to_open(Path(f"x{ending}"))
    if name == "a file":
        fix = "a folder of images is --data.source.type folder"
    found = f"{path}, with {n} files ending in {ending}" if ending else f"{path}, with {n} files without an ending"
    what = f"cannot be opened as a dataset: {str(error).splitlines()[0]}"
    return DataError(what, field=_FIELD, found=found, fix=fix)


def _require_no_tables(path: Path) -> None:
    """Refuse tables beside images: ``datasets`` would take the images alone, without a word about the tables."""
    tables = _tables_in(path)
    if tables:
        raise DataError(
            "holds images and tables, of which only the images would be used",
            field=_FIELD,
            found=f"{path}: {', '.join(each.relative_to(path).as_posix() for each in tables[:3])}",
            expected="tables, or images with at most a metadata.csv",
            fix=f"--{_FIELD} {tables[0]} for the table, which may name image files; or --data.source.type folder for "
            "the images alone",
        )


def _tables_in(path: Path) -> list[Path]:
    """Tables below a folder, without those that describe others."""
    files = (each for each in path.rglob("*") if each.suffix.lower() in _KINDS and not each.name.startswith("."))
    return sorted(each for each in files if each.stem not in ("metadata", "dataset_info", "dataset_infos"))


def absolute(path: Path | str) -> str:
    """A path from the root, without .. in it; links are kept."""
    return os.path.normpath(Path(path).absolute())


def _require_shards(paths: Sequence[Path]) -> None:
    """Refuse numbered files of which some are missing, and two numberings at once: the remains of another save."""
    numbered: dict[tuple[Path, str], dict[int, set[int]]] = {}
    for path in paths:
        match = _OF_N.fullmatch(path.name)
        if match:
            group = numbered.setdefault((path.parent, match[1]), {})
            group.setdefault(int(match[3]), set()).add(int(match[2]))
    for (folder, name), counts in numbered.items():
        if len(counts) > 1:
            found = f"{folder / name}: of {' and of '.join(map(str, sorted(counts)))} files"
            fix = "move the files of the older one away"
            raise DataError("holds the files of two saves", field=_FIELD, found=found, fix=fix)
        n, there = next(iter(counts.items()))
        missing = sorted(set(range(n)) - there)
        if missing and max(there) < n:
            found = f"{folder / name}: {len(missing)} of {n}, e.g. {name}-{missing[0]:05d}-of-{n:05d}"
            raise DataError("files of the split are missing", field=_FIELD, found=found, fix="download them")
