"""Codes of one's own into a run's token dataset: what they mean, and what has changed since."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foundation.codes.config import OwnCodes
from foundation.codes.dataset import TokenDataset
from foundation.codes.fetched import local_codes
from foundation.codes.gathered import Gathered, gather, hash_rows, row_keys
from foundation.codes.manifest import read_manifest, write_manifest
from foundation.codes.shards import Shard, shard_path, write_shard
from foundation.codes.sources import CodeRows, open_codes
from foundation.codes.spec import CodeLevel, CodeSpec, require_codes, require_same_codes
from foundation.errors import ConfigError, ContractError, DataError
from foundation.hardware import TokenAccess
from foundation.images.config import Preprocess
from foundation.paths import is_remote
from foundation.storage import durable
from foundation.storage.serialization import json_text, read_json
from pipeline.encoding.card import dataset_card
from stage1_tokenizer.tokenizer import TokenizerModel

SOURCE = "source.json"
_STREAMED = TokenAccess(form="streamed", memory_limit_mib=256)
OTHER_TOKENIZER = "give the tokenizer that made these codes (--tokenizer)"
_FIELD = "--codes"
_DIFFER = ("rows with other codes:", "rows of another class:", "rows on the other side of the split:")


def inner_tokenizer(source: Path) -> Path | None:
    """The tokenizer's folder inside a source of codes, or of the run that it is; None without one."""
    choices = [source / "codes" / "tokenizer", source / "tokenizer"]
    return next((each for each in choices if (each / "config.json").is_file()), None)


@dataclass(frozen=True)
class CodesImport:
    """The codes that a recipe names, for a run.

    Args:
        own: the recipe's settings.
        tokenizer: folder of the tokenizer that made the codes; None without one.
        validation_share: of the images to hold out, between 0 and 1, where the source has no split for it.
        rows_per_shard: of a parquet file.
    """

    own: OwnCodes
    tokenizer: Path | None
    validation_share: float
    rows_per_shard: int

    @cached_property
    def source(self) -> Path:
        """The folder or file; of codes at an address, the verified copy.

        Raises:
            DataError: see ``local_codes``.
        """
        return local_codes(self.own.source, _FIELD)

    @cached_property
    def rows(self) -> list[CodeRows]:
        """The source's splits.

        Raises:
            DataError: see ``open_codes``.
        """
        return open_codes(self.source, _FIELD)

    def write(self, folder: Path) -> list[str]:
        """Write the token dataset ``folder``, all or nothing.

        Returns:
            What was decided and assumed, a sentence each.

        Raises:
            DataError, ConfigError: codes that cannot be used.
            ContractError: codes of another tokenizer.
            StorageError: the disk refused, or the folder exists.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        stamps = self._stamps()
        gathered = gather(self.rows, folder.parent, self.validation_share, _FIELD)
        spec, assumed = self.spec_of(gathered)
        notes = [*assumed, *gathered.notes]
        durable.require_free_space(folder.parent, len(gathered.image_ids) * spec.n_codes * 4, "the token dataset")

        def fill(temporary: Path) -> None:
            for split, chosen in (("train", ~gathered.held_N), ("validation", gathered.held_N)):
                for index, rows in enumerate(_shards(gathered, np.flatnonzero(chosen), self.rows_per_shard)):
                    write_shard(shard_path(temporary, split, index), _shard(gathered, rows), spec)
            if self.tokenizer is not None:
                durable.copy_files(self.tokenizer, temporary / "tokenizer")
            where = self.own.source if is_remote(self.own.source) else str(self.source)
            about = {"source": where, "sha256": gathered.identity, "files": stamps, "notes": notes}
            durable.write_bytes(temporary / SOURCE, json_text(about, indent=1))
            manifest = write_manifest(temporary, spec)
            card = dataset_card(spec, manifest, decodes=self.tokenizer is not None)
            durable.write_bytes(temporary / "README.md", card.encode())

        durable.publish_folder(folder, fill)
        return notes

    def changes(self, folder: Path) -> str:
        """What differs between the source and the token dataset that was made of it, as text; empty if nothing does.

        Files with the sizes and times of then are not read again.

        Raises:
            DataError, ConfigError, ContractError: as ``write``.
        """
        saved = read_json(
            folder / SOURCE, ("source", "sha256", "files"), fix="move the folder away and run the command again"
        )
        if not self._is_there() or saved["files"] == self._stamps():
            return ""
        gathered = gather(self.rows, folder.parent, self.validation_share, _FIELD)
        spec, _ = self.spec_of(gathered)
        there = TokenDataset(folder, "train", _STREAMED).spec
        if gathered.identity == saved["sha256"] and spec == there:
            return ""
        if (spec.shape, spec.fingerprint) != (there.shape, there.fingerprint):
            return "its codes have another grid or tokenizer"
        sizes = [slot.codebook_size for slot in spec.slots] != [slot.codebook_size for slot in there.slots]
        rows = _differences(_keys_of(folder), gathered.keys())
        return ", ".join(filter(None, ["a codebook of another size" if sizes else "", rows]))

    def _is_there(self) -> bool:
        """Whether there is a source to compare with; says so of an address that cannot be read."""
        try:
            return self.source.exists()
        except DataError as error:
            if not is_remote(self.own.source):
                raise
            print(f"codes: not compared with their source: {error}", file=sys.stderr)
            return False

    def spec_of(self, gathered: Gathered) -> tuple[CodeSpec, list[str]]:
        """What the codes mean: as the source or the tokenizer says, or else by their shape and largest code.

        Returns:
            The specification, and what was assumed, a sentence each.

        Raises:
            DataError: codes outside the codebook, or of another grid.
            ContractError: a source of another tokenizer.
            ConfigError: a grid or codebook size that contradicts what is known.
        """
        train = self.rows[0]
        known = None if self.tokenizer is None else TokenizerModel.load(self.tokenizer).spec
        for each in self.rows:
            if each.spec is not None and known is not None:
                require_same_codes(known, each.spec, owner="the tokenizer", other=each.where)
        known = known or train.spec
        spec, assumed = self._assumed(gathered) if known is None else (self._known(known, gathered), [])
        fix = OTHER_TOKENIZER if self.tokenizer is not None else "give a larger --codebook-size, or none"
        for start in range(0, len(gathered.codes_NT), 65_536):
            require_codes(gathered.codes_NT[start : start + 65_536], spec, f"{train.where}: codes", fix)
        return spec.with_classes(gathered.class_names), assumed

    def _known(self, spec: CodeSpec, gathered: Gathered) -> CodeSpec:
        """A known specification, if shape and options agree with it."""
        owner = "the tokenizer" if self.tokenizer is not None else "the source"
        what, found = f"{owner} is of images of several shapes, which codes of one's own cannot be", spec.n_grids
        fix = "train-prior on the run folder that made the codes trains on all shapes"
        DataError.unless(spec.n_grids == 1, what, field=self.rows[0].where, found=f"{found} shapes", fix=fix)
        allowed = {(spec.n_codes,), spec.shape, *(each.shape for each in spec.levels if len(spec.levels) == 1)}
        if gathered.shape not in allowed:
            what = f"holds codes of another grid than {owner}'s"
            expected = " or ".join(map(str, sorted(allowed, key=len)))
            raise DataError(what, field=self.rows[0].where, found=gathered.shape, expected=expected)
        given: list[tuple[str, Any, Any]] = [
            ("--grid", self.own.sides, spec.shape),
            ("--codebook-size", self.own.codebook_size, spec.codebook_size),
        ]
        for field, found, expected in given:
            same, what = found in (None, expected), f"differs from {owner}'s"
            ConfigError.unless(same, what, field=field, found=found, expected=expected, fix="leave it out")
        return spec

    def _assumed(self, gathered: Gathered) -> tuple[CodeSpec, list[str]]:
        """A specification of codes of which only shape and values are known."""
        sides, assumed = self._sides(gathered.shape)
        size, highest = self.own.codebook_size, gathered.highest
        if size is None:
            size = highest + 1
            assumed.append(f"the codebook is taken to have {size:,} codes, the largest code plus one (--codebook-size)")
        height, width, depth = (*sides, 1)[:3]
        level = CodeLevel(height=height, width=width, codebook_size=size, depth=depth)
        preprocess = Preprocess(height=height, width=width)
        return CodeSpec(levels=(level,), stride=1, preprocess=preprocess, fingerprint=""), assumed

    def _sides(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[str]]:
        n, given = math.prod(shape), self.own.sides
        if given is not None:
            fits = math.prod(given) == n and (len(shape) == 1 or shape == given)
            expected = f"a grid of {n} codes" if len(shape) == 1 else shape
            ConfigError.unless(fits, "is not the codes' grid", field="--grid", found=given, expected=expected)
            return given, []
        if len(shape) > 1:
            return shape, []
        side = math.isqrt(n)
        if side * side != n:
            what, found, fix = "is needed: flat rows are no square", f"rows of {n} codes", "give it, e.g. --grid 8x16"
            raise ConfigError(what, field="--grid", found=found, expected="HxW or HxWxD", fix=fix)
        return (side, side), [f"rows of {n} codes are taken as a grid of {side} x {side} (--grid)"]

    def _stamps(self) -> dict[str, Any]:
        """Size and time of change of each file, and the settings that the rows depend on."""
        files = {str(path.resolve()): path.stat() for each in self.rows for path in each.files}
        stamps: dict[str, Any] = {name: [found.st_size, found.st_mtime_ns] for name, found in sorted(files.items())}
        own: dict[str, Any] = {"grid": self.own.grid, "codebook_size": self.own.codebook_size}
        tokenizer = None if self.tokenizer is None else durable.file_sha256(self.tokenizer / "config.json")
        settings = {**own, "validation_share": self.validation_share, "tokenizer": tokenizer}
        return {**stamps, "settings": settings}


def _shards(gathered: Gathered, rows_N: np.ndarray, n_images: int) -> Iterator[np.ndarray]:
    """Rows of each file, view by view as ``ImageViews`` reads them where all images have the same views."""
    image_of: dict[str, int] = {}
    numbers = np.array([image_of.setdefault(gathered.image_ids[row], len(image_of)) for row in rows_N.tolist()])
    views, counts = np.unique(gathered.views_N[rows_N], return_counts=True)
    if len(views) == 1:
        yield from np.split(rows_N, range(n_images, len(rows_N), n_images))
        return
    regular = bool((counts == len(image_of)).all()) and len(rows_N) == len(image_of) * len(views)
    inner = gathered.views_N[rows_N] if regular else np.arange(len(rows_N))
    file_of = numbers // n_images
    order = np.lexsort((numbers if regular else inner, inner, file_of))
    yield from np.split(rows_N[order], np.flatnonzero(np.diff(file_of[order])) + 1)


def _shard(gathered: Gathered, rows_B: np.ndarray) -> Shard:
    labels = None if gathered.labels_N is None else gathered.labels_N[rows_B]
    ids = [gathered.image_ids[row] for row in rows_B.tolist()]
    return Shard(np.asarray(gathered.codes_NT[rows_B], np.int64), ids, gathered.views_N[rows_B], labels)


def _keys_of(folder: Path) -> dict[tuple[str, int, int], tuple[bytes, str, str]]:
    """``Gathered.keys`` of a token dataset."""
    ids: list[str] = []
    hashes: list[bytes] = []
    names: list[str] = []
    splits: list[str] = []
    views: list[np.ndarray] = []
    for split in read_manifest(folder)["splits"]:
        dataset = TokenDataset(folder, split)
        ids += list(dataset.image_ids)
        hashes += hash_rows(np.asarray(dataset.codes_NT))
        labels = None if dataset.labels_N is None else np.asarray(dataset.labels_N).tolist()
        names += [""] * len(dataset) if labels is None else [dataset.spec.class_names[i] for i in labels]
        splits += [split] * len(dataset)
        views.append(np.asarray(dataset.views_N))
    return row_keys(ids, np.concatenate(views), hashes, names, splits)


def _differences(before: dict[Any, tuple[bytes, str, str]], now: dict[Any, tuple[bytes, str, str]]) -> str:
    """Count the rows that differ, by what differs in them."""
    counts = Counter({"new rows:": len(now.keys() - before.keys()), "rows gone:": len(before.keys() - now.keys())})
    counts.update(dict.fromkeys(_DIFFER, 0))  # in this order
    for key in before.keys() & now.keys():
        pairs = zip(before[key], now[key], _DIFFER, strict=True)
        counts.update(name for one, other, name in pairs if one != other)
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if n)


def require_own(folder: Path) -> None:
    """Raise ``DataError`` for a token dataset that was encoded from images."""
    what, fix = "holds codes that the run encoded from images", "give another run folder (-o)"
    DataError.unless((folder / SOURCE).is_file(), what, field=str(folder), fix=fix)


def require_unchanged(job: CodesImport, folder: Path) -> None:
    """Refuse a source that differs from the token dataset that was made of it.

    Raises:
        ContractError: saying how many rows differ, and in what.
        DataError, ConfigError: the source can no longer be used.
    """
    changed = job.changes(folder)
    if changed:
        fix = "give another run folder (-o), or leave --codes out to go on with the codes in the run"
        raise ContractError("has changed since this run took its codes", field=_FIELD, found=changed, fix=fix)
