"""Listing of a run's images: which ids are trained on and which are held out, with labels, sizes and hashes.

A run writes its listing once. Later stages take the images of the listing, whatever was added or removed since, so an
image that was trained on is never evaluated as held out.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundation.config import digest
from foundation.errors import DataError
from foundation.images.array_image import AnyImage
from foundation.images.failures import BadImage, Failure
from foundation.images.scan import content_of
from foundation.images.sources import ImageSource, require_here, some_images
from foundation.images.windowed import chosen_groups
from foundation.storage import durable

_FORMAT = 2
_KEY = b"tessera"
_COLUMNS = {"size": np.int64, "time": np.int64, "content": np.uint64}


@dataclass(frozen=True)
class ListedImages:
    """Images of one split, in the order in which they are trained on.

    Attributes:
        ids: names of the planned images.
        labels: (n,) class numbers, or None.
        sizes: (n,) int64 bytes of their files; 0 where a source has no file for each image.
        times: (n,) int64 nanoseconds of the files' last change, 0 as above.
        contents: (n,) uint64 hashes of the images, 0 where they are not known; see ``scan.content_of``.
        failures: images that could not be used when they were listed, by id.
        identity: tells these images from others: a hash of ids, sizes, contents and buckets.
        buckets: (n,) uint8 index of each image's shape in ``Preprocess.all_shapes``; None where there is one.
    """

    ids: list[str]
    labels: np.ndarray | None
    sizes: np.ndarray
    times: np.ndarray
    contents: np.ndarray
    failures: Mapping[str, Failure] = field(default_factory=dict)
    identity: str = ""
    buckets: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.identity:
            object.__setattr__(self, "identity", _identity(self))

    @classmethod
    def of(
        cls, source: ImageSource, contents: np.ndarray | None = None, buckets: np.ndarray | None = None
    ) -> ListedImages:
        """The images of a source, of which ``contents`` may be known."""
        n, stamps = len(source.ids), getattr(source, "stamps", None)
        zeros = np.zeros(n, np.int64)
        sizes, times = (zeros, zeros) if stamps is None else (stamps.sizes, stamps.times)
        contents = np.zeros(n, np.uint64) if contents is None else contents
        return cls(list(source.ids), source.labels, sizes, times, contents, buckets=buckets)

    @classmethod
    def named(cls, ids: list[str], labels: np.ndarray | None, buckets: np.ndarray | None = None) -> ListedImages:
        """Images of which no more is known than their names, labels and shapes."""
        zeros = np.zeros(len(ids), np.int64)
        return cls(ids, labels, zeros, zeros, zeros.astype(np.uint64), buckets=buckets)

    def some(self, wanted_N: np.ndarray) -> ListedImages:
        """Those of which ``wanted_N`` (n,) is True."""
        there = np.flatnonzero(wanted_N)
        labels = None if self.labels is None else self.labels[there]
        columns = (self.sizes[there], self.times[there], self.contents[there])
        buckets = None if self.buckets is None else self.buckets[there]
        return ListedImages([self.ids[i] for i in there], labels, *columns, self.failures, buckets=buckets)

    def brief(self, indices: np.ndarray) -> ListedImages:
        """What tells whether some images are still the same: their sizes and contents, without names."""
        return ListedImages([], None, self.sizes[indices], self.times[indices], self.contents[indices], identity="some")

    def without_copies(self) -> ListedImages:
        """The images that have not the pixels of a training image."""
        failures = (self.failures.get(name) for name in self.ids) if self.failures else ()
        copies = np.array([each is not None and each.code == "duplicate" for each in failures], bool)
        return self.some(~copies) if copies.any() else self


def _identity(images: ListedImages) -> str:
    hashed = hashlib.sha256()
    for name in images.ids:
        hashed.update(name.encode("utf-8", "surrogatepass") + b"\0")
    hashed.update(np.ascontiguousarray(images.sizes, "<i8").tobytes())
    hashed.update(np.ascontiguousarray(images.contents, "<u8").tobytes())
    if images.buckets is not None:
        hashed.update(np.ascontiguousarray(images.buckets, "u1").tobytes())
    return hashed.hexdigest()


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

    def ids(self) -> list[list[str]]:
        """Names of the images, split by split."""
        return [each.ids for each in self.splits.values()]

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
            read = _listed if about["format"] == _FORMAT else _listed_of_format_1
            parts = {name: table.filter(pc.equal(table["split"], name)) for name in ("train", "validation")}
            splits = {name: read(each) for name, each in parts.items()}
            return cls(splits, tuple(about["class_names"]), about["inventory"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            fix = "restore this file from a copy: without it, the run does not know which images it was trained on"
            raise DataError(f"the list of the run's images is damaged: {error}", field=str(path), fix=fix) from error


def _table(split: str, images: ListedImages) -> pa.Table:
    n, failures = len(images.ids), images.failures
    failed = [failures.get(name) for name in images.ids] if failures else None
    columns = {
        "image_id": pa.array(images.ids, pa.string()),
        "split": pa.repeat(pa.scalar(split), n),
        "label": pa.nulls(n, pa.int32()) if images.labels is None else pa.array(images.labels, pa.int32()),
        "size": pa.array(images.sizes, pa.int64()),
        "time": pa.array(images.times, pa.int64()),
        "content": pa.array(images.contents, pa.uint64()),
        "failure": pa.array([each and each.code for each in failed], pa.string())
        if failed
        else pa.nulls(n, pa.string()),
        "reason": pa.array([each and each.reason for each in failed], pa.string())
        if failed
        else pa.nulls(n, pa.string()),
    }
    if images.buckets is not None:
        columns["grid"] = pa.array(images.buckets, pa.uint8())
    return pa.table(columns)


def _listed(table: pa.Table) -> ListedImages:
    ids = table["image_id"].to_pylist()
    sizes, times, contents = (table[name].to_numpy().astype(kind) for name, kind in _COLUMNS.items())
    buckets = table["grid"].to_numpy() if "grid" in table.column_names else None
    return ListedImages(ids, _labels_in(table), sizes, times, contents, _failures_in(table), buckets=buckets)


def _listed_of_format_1(table: pa.Table) -> ListedImages:
    """Images of an earlier version, which decoded all as the run began and trained without the failed ones."""
    checksums = table["checksum"].to_numpy().astype(np.uint64)
    failures = _failures_in(table)
    good = table.filter(pc.is_null(table["failure"]))
    ids, zeros = good["image_id"].to_pylist(), np.zeros(len(good), np.int64)
    identity = digest([ids, checksums[checksums > 0].tolist()])
    return ListedImages(ids, _labels_in(good), zeros, zeros, zeros.astype(np.uint64), failures, identity)


def _labels_in(table: pa.Table) -> np.ndarray | None:
    labelled = table["label"].null_count == 0 and len(table) > 0
    return table["label"].to_numpy().astype(np.int64) if labelled else None


def _failures_in(table: pa.Table) -> dict[str, Failure]:
    failed = table.filter(pc.is_valid(table["failure"]))
    rows = zip(*(failed[name].to_pylist() for name in ("image_id", "reason", "failure")), strict=True)
    return {row[0]: Failure(*row) for row in rows}


class ListedSource:
    """The images of one split of a listing, read from the sources that are there now.

    Args:
        listed: the images.
        class_names: of the listing.
        sources: where the images may be; an id is read from the first source that has it.

    Attributes:
        buckets: (n,) see ``ListedImages``.
    """

    def __init__(self, listed: ListedImages, class_names: tuple[str, ...], sources: Sequence[ImageSource]) -> None:
        self.listed, self._sources, self.class_names = listed, sources, class_names
        self.ids, self.labels, self.buckets = listed.ids, listed.labels, listed.buckets
        if len(sources) == 1 and sources[0].ids is listed.ids:
            self._where: list[tuple[ImageSource, int] | None] | None = None
        else:
            where = {name: (source, i) for source in reversed(sources) for i, name in enumerate(source.ids)}
            self._where = [where.get(name) for name in self.ids]
        self.groups, self.streamed = self._groups(), getattr(sources[0], "streamed", None) if sources else None

    def _groups(self) -> np.ndarray | None:
        """Where another archive or row group begins; an image that is gone belongs to the group before it."""
        if len(self._sources) != 1 or not self.ids:
            return None
        if self._where is None:
            return getattr(self._sources[0], "groups", None)
        there = np.array([-1 if found is None else found[1] for found in self._where])
        return chosen_groups(self._sources[0], np.maximum.accumulate(np.maximum(there, 0)))

    def ahead(self, indices: np.ndarray) -> None:
        """Make some images of a streamed source ready in a thread."""
        there = [(None, i) if self._where is None else self._where[i] for i in indices]
        self._sources[0].ahead(np.array([each[1] for each in there if each is not None], np.int64))  # type: ignore[attr-defined]

    def present(self) -> ListedSource:
        """The images that are still there."""
        return self if self._where is None else self._some(np.array([each is not None for each in self._where], bool))

    def without_copies(self) -> ListedSource:
        """The images without held-out copies of training images."""
        listed = self.listed.without_copies()
        return self if listed is self.listed else ListedSource(listed, self.class_names, self._sources)

    def marked(self, failures: Mapping[str, Failure]) -> ListedSource:
        """The same images with other failures."""
        listed = replace(self.listed, failures=failures, identity=self.listed.identity)
        return ListedSource(listed, self.class_names, self._sources)

    def _some(self, wanted_N: np.ndarray) -> ListedSource:
        return self if wanted_N.all() else ListedSource(self.listed.some(wanted_N), self.class_names, self._sources)

    def some(self, indices: np.ndarray) -> ListedSource:
        """See ``some_images``."""
        found = [(self._sources[0], int(i)) if self._where is None else self._where[int(i)] for i in indices]
        chosen = copy.copy(self)
        chosen.listed, chosen.ids, chosen.labels, chosen.buckets = self.listed.brief(indices), [], None, None
        chosen.groups, chosen._sources, chosen._where = None, [], [None] * len(indices)
        for source in {id(each[0]): each[0] for each in found if each is not None}.values():
            places = [k for k, each in enumerate(found) if each is not None and each[0] is source]
            few = some_images(source, np.array([found[k][1] for k in places]))  # type: ignore[index]
            for number, k in enumerate(places):
                chosen._where[k] = few, number
        return chosen

    def require_here(self) -> None:
        """See ``sources.require_here``."""
        for source in {id(each[0]): each[0] for each in self._where or () if each is not None}.values():
            require_here(source)

    def read(self, index: int) -> AnyImage:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason, also if the image is gone, or is another one than was listed.
        """
        found = (self._sources[0], index) if self._where is None else self._where[index]
        if found is None:
            raise BadImage("vanished", "belongs to the run and is no longer there")
        source, i = found
        read: Any = getattr(source, "data", None)
        if read is None:
            image = source.read(i)
        else:
            data, size = read(i), int(self.listed.sizes[index])
            if size not in (0, len(data)):
                raise _changed(f"has {len(data):,} bytes, and had {size:,} when it was listed")
            image = source.decode(data)  # type: ignore[attr-defined]
        content = int(self.listed.contents[index])
        if content and content_of(image) != content:
            raise _changed("has other pixels than when the run began")
        return image


def _changed(what: str) -> BadImage:
    return BadImage("changed", what)


@dataclass(frozen=True)
class Changes:
    """What differs between a run's images and the images that are there now, by id.

    Attributes:
        new: not in the run.
        gone: of the run, no longer there.
        relabelled: of another class now; the run keeps the class it began with.
        touched: written again since with as many bytes; used, unless their pixels are known to differ.
        resized: of another size in bytes now; they are left out.
        rewritten: the ids are the same, and the files that hold the images are not.
    """

    new: list[str]
    gone: list[str]
    relabelled: list[str]
    touched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    rewritten: bool = False

    def __bool__(self) -> bool:
        lists = (self.new, self.gone, self.relabelled, self.touched, self.resized)
        return self.rewritten or any(lists)

    def sentence(self) -> str:
        """The differences in one sentence."""
        parts = [
            (self.new, "{n} new image{s} {are} not in this run"),
            (self.gone, "{n} of its images {are} gone"),
            (self.relabelled, "{n} of its images {have} another class now, and keep{s1} the former one"),
            (self.resized, "{n} of its images {have} another size in bytes now, and {are} left out"),
            (self.touched, "{n} of its images {have} a later time and the former size, and {are} used"),
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
            _compare_stamps(images, source, found)
    return found


def _compare_stamps(images: ListedImages, source: ImageSource, found: Changes) -> None:
    stamps = getattr(source, "stamps", None)
    if stamps is None or not images.times.any():
        return
    place = {name: i for i, name in enumerate(source.ids)}
    pairs = [(i, place[name]) for i, name in enumerate(images.ids) if name in place]
    if not pairs:
        return
    then, now = np.array(pairs).T
    resized = images.sizes[then] != stamps.sizes[now]
    touched = ~resized & (images.times[then] != stamps.times[now]) & (images.contents[then] == 0)
    found.resized.extend(images.ids[i] for i in then[resized])
    found.touched.extend(images.ids[i] for i in then[touched])


def _relabelled(images: ListedImages, class_names: tuple[str, ...], source: ImageSource) -> list[str]:
    if images.labels is None or source.labels is None:
        return []
    now = {name: source.class_names[label] for name, label in zip(source.ids, source.labels, strict=True)}
    then = {name: class_names[label] for name, label in zip(images.ids, images.labels, strict=True)}
    return [name for name, label in then.items() if now.get(name, label) != label]
