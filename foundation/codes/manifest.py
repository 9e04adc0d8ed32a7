"""Manifest of a token dataset: its shards with rows and SHA-256. Its presence marks a complete dataset."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foundation.codes.content import content_of, read_resaved, require_same_rows
from foundation.codes.shards import (
    Shard,
    damaged_shard,
    is_labelled,
    read_shard,
    require_file,
    require_grids,
    shard_paths,
)
from foundation.codes.spec import CodeSpec, require_codes
from foundation.config import digest, from_dict, to_dict
from foundation.errors import ContractError, DataError
from foundation.storage import durable
from foundation.storage.places import LocalPlace, Place, as_place
from foundation.storage.serialization import json_text, parse_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path, spec: CodeSpec) -> dict[str, Any]:
    """Derive ``manifest.json`` from the shards and publish it."""
    manifest = derive_manifest(folder, spec)
    publish_manifest(LocalPlace(folder), manifest)
    return manifest


def derive_manifest(folder: Path, spec: CodeSpec, check: Callable[[Path, Shard], None] | None = None) -> dict[str, Any]:
    """Derive a manifest from the shards of a folder.

    Args:
        folder: the dataset.
        spec: that the shards must have.
        check: is given each shard with its path, and raises if it is not what was planned.

    Returns:
        For each split its files with rows, SHA-256, bytes and what ``content_of`` gives; the number of images
        ``planned`` and ``written`` and of ``views`` of each; the ``failures``; the rows of each class; where images
        have several shapes, the rows of each grid.

    Raises:
        DataError: a shard is damaged, or does not account for each of its images.
        ContractError: a shard was made by another tokenizer or preprocess.
    """
    splits: dict[str, Any] = {}
    for split_folder in sorted(each for each in (folder / "data").iterdir() if each.is_dir()):
        files: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        counts = {"rows": 0, "planned": 0, "written": 0, "views": 0}
        labels_V, grids_G = np.zeros(len(spec.class_names), np.int64), np.zeros(spec.n_grids, np.int64)
        for path in shard_paths(folder, split_folder.name):
            shard = read_shard(path, spec)
            _require_accounted(path, shard, len(spec.class_names))
            if check is not None:
                check(path, shard)
            rows, written = len(shard.image_ids), shard.n_images
            name = path.relative_to(folder).as_posix()
            files.append(
                {
                    "file": name,
                    "rows": rows,
                    "sha256": durable.file_sha256(path),
                    "bytes": path.stat().st_size,
                    **content_of(shard),
                }
            )
            failures += [to_dict(each) for each in shard.failures]
            counts["rows"] += rows
            counts["written"] += written
            counts["planned"] += written + len(shard.failures)
            counts["views"] = max(counts["views"], len(np.unique(shard.views)))
            if shard.labels is not None:
                labels_V += np.bincount(shard.labels, minlength=len(labels_V))
            if shard.grids is not None:
                grids_G += np.bincount(shard.grids, minlength=len(grids_G))
        labels = {"labels": labels_V.tolist()} if spec.class_names else {}
        grids = {"grids": grids_G.tolist()} if spec.n_grids > 1 else {}
        splits[split_folder.name] = {**counts, **labels, **grids, "files": files, "failures": failures}
    return {"format": 1, "contract": spec.contract, "spec": to_dict(spec), "splits": splits}


def publish_manifest(place: Place, manifest: dict[str, Any]) -> None:
    """Publish a manifest, which marks the dataset as complete."""
    place.replace(MANIFEST, json_text(manifest, indent=1))


def _require_accounted(path: Path, shard: Shard, n_classes: int) -> None:
    if shard.labels is not None and not ((shard.labels >= 0) & (shard.labels < n_classes)).all():
        raise damaged_shard(path, f"it has labels outside 0..{n_classes - 1}")
    failed = {each.image_id for each in shard.failures}
    both = failed & set(shard.image_ids)
    found = shard.n_images + len(failed)
    if both or shard.planned not in (None, found):
        listed = f"lists {len(failed)} as failed, {len(both)} of them twice"
        raise damaged_shard(path, f"of {shard.planned} images planned, it has {shard.n_images} and {listed}")


def read_manifest(folder: Path | Place) -> dict[str, Any]:
    """The manifest of a complete token dataset.

    Raises:
        DataError: there is none.
        RemoteError: the store gives no access.
    """
    place = as_place(folder)
    content, field = place.find(MANIFEST), f"{place.shown}/{MANIFEST}"
    if content is None:
        there = not isinstance(place, LocalPlace) or place.folder.is_dir()
        what = "the token dataset is not complete" if there else "no such token dataset"
        raise DataError(what, field=place.shown, expected=f"a folder with {MANIFEST}", fix="run tessera encode")
    return manifest_of(content, field)


def manifest_of(content: bytes, field: str) -> dict[str, Any]:
    """The manifest that a file holds; ``field`` names the file.

    Raises:
        CheckpointError, ContractError: it is damaged, or was edited.
    """
    manifest = parse_json(content, ("contract", "spec", "splits"), field, fix="move it away and run tessera encode")
    spec = from_dict(CodeSpec, manifest["spec"])
    if spec.contract != manifest["contract"]:
        raise ContractError("the manifest's specification was edited", field=field, fix="run tessera encode")
    return manifest


@dataclass(frozen=True)
class ListedShard:
    """One shard as the manifest lists it.

    Attributes:
        path: the parquet file.
        rows: how many it holds.
        sha256: of its bytes.
        entry: all that the manifest says of it.
    """

    path: Path
    rows: int
    sha256: str
    entry: Mapping[str, Any] = field(default_factory=dict)

    def require_unchanged(self, spec: CodeSpec) -> Shard | None:
        """Require the bytes, or at least the rows, that the manifest lists.

        Returns:
            The rows of a file that another program saved again, after a warning; None for the file that was written.

        Raises:
            DataError: missing, damaged, or other rows.
        """
        require_file(self.path)
        if durable.file_sha256(self.path) == self.sha256:
            return None
        size = self.path.stat().st_size
        if size == self.entry.get("bytes", size):  # some bytes were changed in place
            raise damaged_shard(self.path, "its bytes are not the ones that the manifest lists")
        shard = read_resaved(self.path, spec)
        require_same_rows(self.path, shard, dict(self.entry))
        warnings.warn(f"{self.path} was saved again by another program: its rows are the same", stacklevel=2)
        return shard


@dataclass(frozen=True)
class SplitShards:
    """The shards of one split of a complete token dataset.

    Attributes:
        folder: the dataset.
        split: its name.
        spec: what the codes mean.
        shards: in order; the rows of the split are theirs, one after the other.
    """

    folder: Path
    split: str
    spec: CodeSpec
    shards: tuple[ListedShard, ...]

    @property
    def rows_by_shard(self) -> tuple[int, ...]:
        """Rows of each shard."""
        return tuple(each.rows for each in self.shards)

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return sum(self.rows_by_shard)

    @property
    def labelled(self) -> bool:
        """Whether there are labels, which the first shard decides for all."""
        return is_labelled(self.shards[0].path)

    @property
    def identity(self) -> str:
        """SHA-256 of what the split holds: the specification and every shard's bytes, in order."""
        return digest({"contract": self.spec.contract, "shards": [each.sha256 for each in self.shards]})

    def read(self) -> Iterator[Shard]:
        """Every shard in order, each verified: its bytes, its specification, its rows and its codes.

        Raises:
            DataError: a shard is missing, damaged, or holds a code outside the codebook.
            ContractError: a shard was made by another tokenizer or preprocess.
        """
        labelled = self.labelled
        for listed in self.shards:
            resaved = listed.require_unchanged(self.spec)
            shard = read_shard(listed.path, self.spec) if resaved is None else resaved
            if len(shard.image_ids) != listed.rows or (shard.labels is not None) != labelled:
                raise damaged_shard(listed.path, "its rows or columns differ from the manifest and the first shard")
            require_codes(shard.codes_BT, self.spec, str(listed.path))
            require_grids(shard.grids, self.spec, listed.rows, f"{listed.path}: grid")
            yield shard


def open_split(folder: Path, split: str) -> SplitShards:
    """One split of a complete token dataset, by its manifest.

    Raises:
        DataError: no such dataset, an incomplete one, no such split, or one without rows; or a file that the manifest
            does not list, whose rows nobody would read.
    """
    manifest = read_manifest(folder)
    if split not in manifest["splits"]:
        raise DataError("no such split", field=str(folder), found=split, expected=", ".join(manifest["splits"]))
    _require_no_strangers(folder, manifest)
    entry = manifest["splits"][split]
    listed = [each for each in entry["files"] if each["rows"]]  # in the others every image failed
    shards = tuple(ListedShard(folder / each["file"], each["rows"], each["sha256"], each) for each in listed)
    found = SplitShards(folder, split, from_dict(CodeSpec, manifest["spec"]), shards)
    if found.rows != entry["rows"] or found.rows == 0:
        what, expected = "has another number of rows than its manifest", entry["rows"] or "at least one"
        raise DataError(what, field=str(folder), found=found.rows, expected=expected, fix="run tessera encode")
    return found


def _require_no_strangers(folder: Path, manifest: Mapping[str, Any]) -> None:
    listed = {each["file"] for entry in manifest["splits"].values() for each in entry["files"]}
    there = (path for path in (folder / "data").glob("*/*.parquet") if not path.name.startswith("."))
    others = sorted(name for name in (path.relative_to(folder).as_posix() for path in there) if name not in listed)
    if others:
        what, found = "is not in the dataset's manifest, so its rows would not be read", f"{len(others)} such files"
        fix = "move it out of the folder; to train on more codes, join them and give them with train-prior --codes"
        raise DataError(what, field=str(folder / others[0]), found=found, fix=fix)
