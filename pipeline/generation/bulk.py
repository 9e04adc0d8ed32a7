"""Bulk sampling to files, resumable, by one process or several: image i is a function of (seed, i) and its label.

Images are sampled and decoded in fixed groups of ``batch_size``, also where some are missing, so that each is equal to
the bit however the work is interrupted and shared. A group has one shape. Images are stored as a png file each or as
parquet files, of which each appears whole or not at all.
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from foundation.arguments import as_path, require_type, shown
from foundation.codes.spec import CodeSpec
from foundation.config import check_types, require, to_dict
from foundation.config_fields import added_later, without_defaults
from foundation.errors import ConfigError
from foundation.images.image_bytes import file_content, file_ending
from foundation.images.preprocess import to_pixels
from foundation.paths import is_remote
from foundation.storage.places import Place, as_place, place_at
from foundation.storage.serialization import tensors_sha256
from foundation.threads import map_in_threads
from pipeline.generation.base import BaseGenerator
from pipeline.generation.drawing import SampleRequest, draw_best
from pipeline.generation.options import DrawOptions
from pipeline.generation.requests import DrawSettings, image_seed
from pipeline.image_files import file_name
from pipeline.work_sharing import Part, claim_place

Format = Literal["png", "parquet"]
PLAN = "generation.json"
_MAX_SEED, _MOST_IMAGES = 2**62, 10**8
_STREAM_RULE = "derived from (seed, i), not seed + i"
_NAME = re.compile(r"(\d{8})(?:-.*)?\.(?:png|npy)", re.DOTALL)
_PART = re.compile(r"data/part-[^/]*\.parquet")


@dataclass(frozen=True)
class DrawnImages:
    """Images of one job.

    Attributes:
        images: their numbers, consecutive.
        pixels: (Y, X, C) of each, uint8 or uint16.
        codes_BT: int64.
        labels: class numbers.
        seeds: that of each image's random stream.
        grids: shape of each, an index into the generator's shapes.
    """

    images: range
    pixels: Sequence[np.ndarray]
    codes_BT: np.ndarray
    labels: Sequence[int]
    seeds: Sequence[int]
    grids: Sequence[int]


class PngFiles:
    """``images/00000000-CLASS.png`` and so on; ``metadata.csv`` beside the folder once all are there.

    Images that PNG cannot hold in full are .npy files.

    Args:
        root: of the samples, a folder or a place.
        spec: of the codes; names the classes.
        labelled: whether every image has a class.
    """

    folder = "images"

    def __init__(self, root: Path | Place, spec: CodeSpec, labelled: bool) -> None:
        self._place, self._labelled, self._names = as_place(root), labelled, spec.class_names
        self._preprocess, self._ending = spec.preprocess, file_ending(spec.preprocess)
        self._numbers = self._there()

    def has(self, images: range) -> bool:
        """Whether all images of one job are there."""
        return self._numbers.issuperset(images)

    def write(self, drawn: DrawnImages) -> None:
        """Write the images of one job that are not there yet."""
        rows = zip(drawn.images, drawn.pixels, drawn.labels, strict=True)
        missing = [(i, pixels, label) for i, pixels, label in rows if i not in self._numbers]
        map_in_threads(
            lambda row: self._place.replace(self._name(row[0], row[2]), file_content(row[1], self._preprocess)),
            missing,
        )
        self._numbers.update(drawn.images)

    def n_missing(self, batch: Batch) -> int:
        """How many images of a batch are not there."""
        return len(set(range(batch.count)) - self._there())

    def finish(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Write ``metadata.csv``: with it ``datasets.load_dataset`` opens the folder with classes.

        Args:
            rows: number, label and seed of every image.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file_name", *(["label"] if self._labelled else []), "seed"])
        for i, label, seed in rows:
            name = [self._names[label]] if self._labelled else []
            writer.writerow([self._name(i, label), *name, seed])
        self._place.replace("metadata.csv", text.getvalue().encode())

    def _there(self) -> set[int]:
        """Numbers of the images that are there.

        Raises:
            ConfigError: a png file of something else, which would count as a sample.
        """
        files = [name for name in self._place.names(self.folder) if name.endswith(self._ending)]
        numbers = {name: _NAME.fullmatch(name.removeprefix(f"{self.folder}/")) for name in files}
        foreign = sorted(name for name, number in numbers.items() if number is None)
        if foreign:
            problem, fix = "is not an image of this folder's samples", "move it away, or choose another folder"
            field = f"{self._place.shown}/{foreign[0]}"
            raise ConfigError(problem, field=field, found=f"{len(foreign)} such files", fix=fix)
        return {int(number[1]) for number in numbers.values() if number is not None}

    def _name(self, number: int, label: int) -> str:
        name = f"-{file_name(self._names[label])}" if self._labelled else ""
        return f"{self.folder}/{number:08d}{name}{self._ending}"


class ParquetFiles:
    """``data/part-00000000.parquet`` and so on, named by the first image: image, label, seed, codes, grid.

    Images that PNG cannot hold in full are .npy files in the cells, which ``--data.source.type dataset`` reads.

    Args and methods as of ``PngFiles``.
    """

    folder = "data"

    def __init__(self, root: Path | Place, spec: CodeSpec, labelled: bool) -> None:
        self._place, self._spec, self._labelled = as_place(root), spec, labelled

    def has(self, images: range) -> bool:
        """Whether the file of one job is there."""
        return self._place.exists(self._name(images[0]))

    def write(self, drawn: DrawnImages) -> None:
        """Write the images of one job."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        preprocess = self._spec.preprocess
        bytes_B = [file_content(pixels, preprocess) for pixels in drawn.pixels]
        names = [f"{i:08d}{file_ending(preprocess)}" for i in drawn.images]
        columns: dict[str, Any] = {"image": [{"bytes": b, "path": p} for b, p in zip(bytes_B, names, strict=True)]}
        if self._labelled:
            columns["label"] = list(drawn.labels)
        columns |= {"seed": list(drawn.seeds), "codes": list(drawn.codes_BT)}
        if self._spec.n_grids > 1:
            columns["grid"] = list(drawn.grids)
        table = pa.table(columns, schema=self._features().arrow_schema)
        name = self._name(drawn.images[0])
        self._place.publish_file(name, lambda temporary: pq.write_table(table, temporary, row_group_size=256))

    def n_missing(self, batch: Batch) -> int:
        """How many images of a batch are not there; files are whole."""
        there, jobs = set(self._place.names(self.folder)), map(batch.images_of, range(batch.n_jobs))
        return sum(len(images) for images in jobs if self._name(images[0]) not in there)

    def finish(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Nothing: the files hold labels and seeds."""

    def _name(self, first: int) -> str:
        return f"{self.folder}/part-{first:08d}.parquet"

    def _features(self) -> Any:
        from datasets import ClassLabel, Features, Image, List, Value

        array = {"bytes": Value("binary"), "path": Value("string")}
        fields: dict[str, Any] = {"image": Image() if self._spec.preprocess.fits_png else array}
        if self._labelled:
            fields["label"] = ClassLabel(names=list(self._spec.class_names))
        codes = List(Value("int32"), length=self._spec.n_codes)
        grid = {"grid": Value("int8")} if self._spec.n_grids > 1 else {}
        return Features({**fields, "seed": Value("int64"), "codes": codes, **grid})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Which images, and how they are sampled and stored."""

    count: int
    """images in all, over all parts"""
    labels: tuple[int, ...]
    """class numbers; image i has label i modulo their number, so that classes are balanced"""
    seed: int = 0
    """the random stream of image i is that of ``image_seed(seed, i)``"""
    format: Format = "png"
    """png: a file for each image; parquet: files of images_per_file rows that datasets.load_dataset opens"""
    batch_size: int = 64
    """images sampled together; what a crash loses of png files"""
    images_per_file: int = 1024
    """rows of a parquet file, a multiple of batch_size; what a crash loses of them"""
    grid: int | None = added_later(None)
    """of a generator of several shapes, the one of all images, an index into its shapes; null mixes the shapes in the
    proportions of the training images, each batch_size images of one shape"""

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.count <= _MOST_IMAGES, "count", self.count, f"a whole number from 1 to {_MOST_IMAGES:,}")
        require(0 <= self.seed < _MAX_SEED, "seed", self.seed, "a whole number from 0")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive whole number")
        rows, multiple = self.images_per_file, f"a multiple of batch_size, {self.batch_size}"
        whole = self.format != "parquet" or rows % self.batch_size == 0
        require(rows > 0 and whole, "images_per_file", rows, multiple)
        require(self.format in ("png", "parquet"), "format", self.format, "png or parquet")

    @property
    def images_per_job(self) -> int:
        """Images of one job, which is done by one part."""
        return self.images_per_file if self.format == "parquet" else self.batch_size

    @property
    def n_jobs(self) -> int:
        """Jobs in all."""
        return -(-self.count // self.images_per_job)

    def images_of(self, job: int) -> range:
        """Numbers of the images of a job."""
        return range(job * self.images_per_job, min((job + 1) * self.images_per_job, self.count))


@dataclass(frozen=True)
class BatchDone:
    """Summary of a process' work.

    Attributes:
        n_new: images that it made.
        n_there: images of its part that were there.
        n_missing: images of other parts that are still missing.
        seconds: that it took.
    """

    n_new: int
    n_there: int
    n_missing: int
    seconds: float


@torch.no_grad()
def generate_to_folder(
    generator: BaseGenerator,
    folder: str | Path,
    batch: Batch,
    part: Part = Part(),  # noqa: B008
    *,
    options: DrawOptions | None = None,
) -> BatchDone:
    """Make the images of a part that are not there yet.

    The folder belongs to one generator and one batch; several processes may fill it at the same time. The one that
    makes the last image writes ``metadata.csv`` beside png files.

    Args:
        generator: samples and decodes.
        folder: made if it does not exist; or an address, ``s3://bucket/folder``.
        batch: which images.
        part: which jobs this process does.
        options: sampling settings and best_of, as of a call.

    Raises:
        ConfigError: the folder was begun with other settings, or holds png files of something else; or an option that
            cannot be used.
        DataError: a file's images, or a batch's, with all their candidates would not fit in memory.
        StorageError: the disk refused.
        RemoteError: the store refused.
    """
    began = time.perf_counter()
    is_address = isinstance(folder, str) and is_remote(folder)
    place = place_at(str(folder), "folder") if is_address else as_place(as_path(folder, "folder"))
    require_type("generator", generator, BaseGenerator)
    require_type("batch", batch, Batch)
    labels, last = batch.labels, generator.prior.null_class
    grid, n_grids = batch.grid, generator.spec.n_grids
    require(grid is None or 0 <= grid < n_grids, "grid", shown(grid), f"0..{n_grids - 1}, or null")
    known = len(labels) > 0 and 0 <= min(labels) <= max(labels) <= last
    require(known, "labels", shown(labels), f"class numbers, 0..{last - 1}, or {last} for no class")
    settings = generator.settings(options or {})
    generator.require_labels(batch.labels)
    generator.require_memory(min(batch.images_per_job, batch.count), settings)
    weights = {"tokenizer": generator.spec.fingerprint, "prior": tensors_sha256(generator.prior.state_dict())}
    sampled = {"streams": _STREAM_RULE, "best_of": settings.best_of, "sampling": to_dict(settings.sampling)}
    _require_new(place)
    if batch.grid is None and generator.grid_counts:
        sampled["grid_counts"] = list(generator.grid_counts)
    claim_place(place, PLAN, {**without_defaults(batch), **sampled, **weights})
    kind = ParquetFiles if batch.format == "parquet" else PngFiles
    files: PngFiles | ParquetFiles = kind(place, generator.spec, generator.prior.null_class not in batch.labels)
    jobs = part.indices(batch.n_jobs)
    n_new = n_there = 0
    mine = sum(len(batch.images_of(job)) for job in jobs)
    with tqdm(total=mine, desc="images", unit="img", delay=2, disable=not generator.shows_progress) as progress:
        for job in jobs:
            images = batch.images_of(job)
            if files.has(images):
                n_there += len(images)
            else:
                files.write(_draw_job(generator, batch, images, settings))
                n_new += len(images)
            progress.update(len(images))
    n_missing = files.n_missing(batch)
    if not n_missing:
        place.sweep(files.folder)
        files.finish([(i, batch.labels[i % len(batch.labels)], image_seed(batch.seed, i)) for i in range(batch.count)])
    return BatchDone(n_new, n_there, n_missing, time.perf_counter() - began)


def _require_new(place: Place) -> None:
    """Refuse a place without a plan that holds files of the names that will be written.

    Raises:
        ConfigError: naming one of them.
    """
    if place.exists(PLAN):
        return
    images = [name.removeprefix(f"{PngFiles.folder}/") for name in place.names(PngFiles.folder)]
    there = [f"{PngFiles.folder}/{name}" for name in images if _NAME.fullmatch(name)]
    there += [name for name in place.names(ParquetFiles.folder) if _PART.fullmatch(name)]
    there += ["metadata.csv"] * place.exists("metadata.csv")
    if there and not place.exists(PLAN):  # in this order: another process may have begun in between
        problem, found = "holds files of something else", f"{len(there)}, e.g. {place.shown}/{there[0]}"
        raise ConfigError(problem, field=place.shown, found=found, fix="move them away, or choose another folder")


def _draw_job(generator: BaseGenerator, batch: Batch, images: range, settings: DrawSettings) -> DrawnImages:
    """The images of a job, group by group."""
    pixels: list[np.ndarray] = []
    codes, grids = [], list[int]()
    labels = [batch.labels[i % len(batch.labels)] for i in images]
    seeds = [image_seed(batch.seed, i) for i in images]
    for start in range(0, len(images), batch.batch_size):
        group = slice(start, start + batch.batch_size)
        number = images[start] // batch.batch_size
        grid = grid_of_group(number, generator.grid_counts) if batch.grid is None else batch.grid
        request = SampleRequest(labels=labels[group], seeds=seeds[group], sampling=settings.sampling, grid=grid)
        codes_BT, _ = draw_best(generator.prior, request, settings.best_of, show_progress=False)
        pixels += list(to_pixels(generator.decode(generator.spec.grid(codes_BT, grid)), generator.spec.preprocess.bits))
        codes.append(codes_BT.cpu().numpy())
        grids += [grid] * len(codes_BT)
    return DrawnImages(images, pixels, np.concatenate(codes), labels, seeds, grids)


def grid_of_group(group: int, counts: Sequence[int]) -> int:
    """The shape of the images of a group, of which the first g have the proportions of ``counts`` as nearly as can be.

    Args:
        group: its number, from 0.
        counts: of each shape, in whose proportions groups are given to shapes; empty for one shape.
    """
    if not counts:
        return 0
    shares, given, chosen = np.array(counts) / sum(counts), np.zeros(len(counts)), 0
    for each in range(group + 1):
        chosen = int(np.argmax(shares * (each + 1) - given))  # what lacks most
        given[chosen] += 1
    return chosen
