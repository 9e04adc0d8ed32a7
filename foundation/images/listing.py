"""Listing of a run's images: which ids are trained on and which are held out, with labels and checksums of pixels.

A run writes its listing once. Later stages take the images of the listing, whatever was added or removed since, so an
image that was trained on is never evaluated as held out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundation.errors import DataError
from foundation.images.array_image import AnyImage
from foundation.images.failures import BadImage, Failure
from foundation.images.sources import ImageSource
from foundation.storage import durable

_FORMAT = 1
_KEY = b"tessera"


@dataclass(frozen=True)
class ListedImages:
    """Images of one split, in the order in which they are trained on.

    Attributes:
        ids: names of the planned images.
        labels: (n,) class numbers, or None.
        checksums: (n,) uint64 of the preprocessed pixels; 0 for an image that failed or was not decoded.
        failures: images that could not be used, by id.
    """

    ids: list[str]
    labels: np.ndarray | None
    checksums: np.ndarray
    failures: Mapping[str, Failure] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """All images of a run.

    Attributes:
        splits: ``train`` and ``validation``.
        class_names: by class number.
        inventory: see ``foundation.images.inventory.inventory``.
    """

    splits: Mapping[str, ListedImages]
    class_names: tuple[str, ...]
    inventory: Mapping[str, Any] = field(default_factory=dict)

    def known(self) -> dict[str, bool]:
        """For each id: whether the image is held out; an id of both parts was trained on."""
        return {name: split == "validation" for split in ("validation", "train") for name in self.splits[split].ids}

    def save(self, path: Path) -> None:
        """Write ``path``, a parquet file with one row an image."""
        tables = [_table(split, each) for split, each in self.splits.items()]
        about = {"format": _FORMAT, "class_names": self.class_names, "inventory": self.inventory}
        table = pa.concat_tables(tables).replace_schema_metadata({_KEY: json.dumps(about).encode()})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        durable.replace_file(path, sink.getvalue().to_pybytes())

    @classmethod
    def load(cls, path: Path) -> Listing:
        """Read a listing.

        Raises:
            DataError: the file is damaged.
        """
        try:
            table = pq.read_table(path)
            about = json.loads(table.schema.metadata[_KEY])
            split = np.array(table["split"].to_pylist(), object)
            splits = {name: _listed(table.filter(pa.array(split == name))) for name in ("train", "validation")}
            return cls(splits, tuple(about["class_names"]), about["inventory"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            fix = "restore this file from a copy: without it, the run does not know which images it was trained on"
            raise DataError(f"the list of the run's images is damaged: {error}", field=str(path), fix=fix) from error


def _table(split: str, images: ListedImages) -> pa.Table:
    failures = [images.failures.get(name) for name in images.ids]
    labels = [None] * len(images.ids) if images.labels is None else images.labels.tolist()
    columns = {
        "image_id": pa.array(images.ids, pa.string()),
        "split": pa.array([split] * len(images.ids), pa.string()),
        "label": pa.array(labels, pa.int32()),
        "checksum": pa.array(images.checksums, pa.uint64()),
        "failure": pa.array([each and each.code for each in failures], pa.string()),
        "reason": pa.array([each and each.reason for each in failures], pa.string()),
    }
    return pa.table(columns)


def _listed(table: pa.Table) -> ListedImages:
    ids, codes, reasons = (table[name].to_pylist() for name in ("image_id", "failure", "reason"))
    labelled = table["label"].null_count == 0 and len(ids) > 0
    failures = {
        name: Failure(name, reason, code) for name, code, reason in zip(ids, codes, reasons, strict=True) if code
    }
    labels = table["label"].to_numpy().astype(np.int64) if labelled else None
    return ListedImages(ids, labels, table["checksum"].to_numpy().astype(np.uint64), failures)


class ListedSource:
    """The images of one split of a listing, read from the sources that are there now.

    Args:
        listed: ids, labels and checksums.
        class_names: of the listing.
        sources: where the images may be; an id is read from the first source that has it.

    Attributes:
        checksums: (n,) uint64, see ``ListedImages``.
    """

    def __init__(self, listed: ListedImages, class_names: tuple[str, ...], sources: Sequence[ImageSource]) -> None:
        self._listed, self._sources = listed, sources
        self.ids, self.labels, self.checksums = listed.ids, listed.labels, listed.checksums
        self.class_names = class_names
        where = {name: (source, i) for source in reversed(sources) for i, name in enumerate(source.ids)}
        self._where = [where.get(name) for name in self.ids]

    def present(self) -> ListedSource:
        """The images that are still there."""
        return self._some([found is not None for found in self._where])

    def without_copies(self) -> ListedSource:
        """The images without held-out copies of training images."""
        failures = (self._listed.failures.get(name) for name in self.ids)
        return self._some([failure is None or failure.code != "duplicate" for failure in failures])

    def _some(self, wanted_N: list[bool]) -> ListedSource:
        there = np.flatnonzero(wanted_N)
        labels = None if self.labels is None else self.labels[there]
        listed = ListedImages([self.ids[i] for i in there], labels, self.checksums[there], self._listed.failures)
        return ListedSource(listed, self.class_names, self._sources)

    def read(self, index: int) -> AnyImage:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason, also if the image is gone.
        """
        found = self._where[index]
        if found is None:
            raise BadImage("vanished", "belongs to the run and is no longer there")
        source, i = found
        return source.read(i)


@dataclass(frozen=True)
class Changes:
    """What differs between a run's images and the images that are there now, by id.

    Attributes:
        new: not in the run.
        gone: of the run, no longer there.
        relabelled: of another class now; the run keeps the class it began with.
        rewritten: the ids are the same, and the files that hold the images are not.
    """

    new: list[str]
    gone: list[str]
    relabelled: list[str]
    rewritten: bool = False

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.relabelled or self.rewritten)

    def sentence(self) -> str:
        """The differences in one sentence."""
        parts = [
            (self.new, "{n} new image{s} {are} not in this run"),
            (self.gone, "{n} of its images {are} gone"),
            (self.relabelled, "{n} of its images {have} another class now, and keep{s1} the former one"),
        ]
        text = "; ".join(_phrase(form, names) for names, form in parts if names)
        rewritten = "the files that hold them were written again: images that changed are left out"
        return rewritten if self.rewritten else text


def _phrase(form: str, names: list[str]) -> str:
    one = len(names) == 1
    words = {"s": "" if one else "s", "s1": "s" if one else "", "are": "is" if one else "are"}
    text = form.format(n=f"{len(names):,}", have="has" if one else "have", **words)
    return f"{text} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def changes(listing: Listing, sources: Mapping[str, ImageSource | None]) -> Changes:
    """Compare a listing with the sources ``train`` and ``validation`` (None: a share of ``train``)."""
    found = Changes([], [], [])
    given = {name: source for name, source in sources.items() if source is not None}
    for name, source in given.items():
        listed = [listing.splits[name]] if len(given) > 1 else [*listing.splits.values()]  # ids may stand in both parts
        then, now = {each for images in listed for each in images.ids}, set(source.ids)
        found.new.extend(each for each in source.ids if each not in then)
        found.gone.extend(each for images in listed for each in images.ids if each not in now)
        for images in listed:
            found.relabelled.extend(_relabelled(images, listing.class_names, source))
    return found


def _relabelled(images: ListedImages, class_names: tuple[str, ...], source: ImageSource) -> list[str]:
    if images.labels is None or source.labels is None:
        return []
    now = {name: source.class_names[label] for name, label in zip(source.ids, source.labels, strict=True)}
    then = {name: class_names[label] for name, label in zip(images.ids, images.labels, strict=True)}
    return [name for name, label in then.items() if now.get(name, label) != label]
