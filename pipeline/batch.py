"""Many images to files, by one process or several, resumable: image i is a function of seed + i and its label.

Images are drawn and decoded in fixed groups of ``batch_size``, whatever is missing and however the groups are shared
out, so that every image is computed in the same company and comes out the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from foundation.config import require, to_dict
from foundation.images.preprocess import to_uint8
from foundation.storage import durable
from foundation.storage.serialization import tensors_sha256
from pipeline.batch_files import DrawnImages, Format, ImageFiles, claim, open_files
from pipeline.draw import Order, draw_best
from pipeline.generator_output import decode_batch, decoded
from pipeline.generator_parts import GeneratorParts
from pipeline.sampling_options import DrawOptions

_MAX_SEED, _MOST = 2**62, 10**8


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Which images, and how they are drawn and stored."""

    count: int
    """images in all, over all shards"""
    labels: tuple[int, ...]
    """class numbers; image i has label i modulo their number, so that classes are balanced"""
    seed: int = 0
    """image i has the random stream of seed + i"""
    format: Format = "png"
    """png: a file for each image; parquet: files of images_per_file rows that datasets.load_dataset opens"""
    batch_size: int = 64
    """images drawn together; what a crash loses of png files"""
    images_per_file: int = 1024
    """rows of a parquet file, a multiple of batch_size; what a crash loses of them"""

    def __post_init__(self) -> None:
        require(0 < self.count <= _MOST, "count", self.count, f"a whole number from 1 to {_MOST:,}")
        require(0 <= self.seed < _MAX_SEED, "seed", self.seed, "a whole number from 0")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive whole number")
        rows, multiple = self.images_per_file, f"a multiple of batch_size, {self.batch_size}"
        whole = self.format != "parquet" or rows % self.batch_size == 0
        require(rows > 0 and whole, "images_per_file", rows, multiple)
        require(self.format in ("png", "parquet"), "format", self.format, "png or parquet")

    @property
    def images_per_job(self) -> int:
        """Images that one job makes and that no two shards share."""
        return self.images_per_file if self.format == "parquet" else self.batch_size

    @property
    def n_jobs(self) -> int:
        """Jobs in all."""
        return -(-self.count // self.images_per_job)


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``n``: every n-th job."""

    index: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        expected = "i/N with i from 0 to N - 1, e.g. 0/4"
        require(0 <= self.index < self.n, "shard", f"{self.index}/{self.n}", expected)


@dataclass(frozen=True)
class BatchDone:
    """What a process did.

    Attributes:
        n_new: images that it made.
        n_there: images of its share that were there.
        n_missing: images of other shards that are still missing.
        seconds: that it took.
    """

    n_new: int
    n_there: int
    n_missing: int
    seconds: float


@torch.no_grad()
def generate_to_folder(
    generator: GeneratorParts,
    folder: Path,
    batch: Batch,
    shard: Shard | None = None,
    *,
    options: DrawOptions | None = None,
) -> BatchDone:
    """Make a shard's images that are not there yet.

    The folder belongs to one generator and one batch; several processes may fill it at the same time. When its last
    image is there, whoever made it writes ``metadata.csv`` beside png files.

    Args:
        generator: draws and decodes.
        folder: made if need be.
        batch: which images.
        shard: this process' share; None is all.
        options: sampling settings and best_of, as of a call.

    Raises:
        ConfigError: the folder was begun with other settings, or an option that cannot be used.
        DataError: a file's images, or a batch's, with all their candidates would not fit in memory.
        StorageError: the disk refused.
    """
    began, shard = time.perf_counter(), shard or Shard()
    request = generator.request(options or {})
    generator.require_labels(batch.labels)
    generator.require_room(min(batch.images_per_job, batch.count), request)
    claim(folder, {
        **to_dict(batch), "best_of": request.best_of, "sampling": to_dict(request.sampling),
        "tokenizer": generator.spec.fingerprint, "prior": tensors_sha256(generator.prior.state_dict()),
    })  # fmt: skip
    files = open_files(folder, batch.format, generator.spec, labelled=generator.prior.null_class not in batch.labels)
    jobs = range(shard.index, batch.n_jobs, shard.n)
    n_new = n_there = 0
    mine = sum(len(_images(batch, job)) for job in jobs)
    with tqdm(total=mine, desc="images", unit="img", delay=2, disable=not generator.shows_progress) as progress:
        for job in jobs:
            images = _images(batch, job)
            if files.has(images):
                n_there += len(images)
            else:
                files.write(_drawn(generator, batch, images, options or {}))
                n_new += len(images)
            progress.update(len(images))
    n_missing = files.n_missing(batch.count)
    if not n_missing:
        _finish(files, batch)
    return BatchDone(n_new, n_there, n_missing, time.perf_counter() - began)


def _images(batch: Batch, job: int) -> range:
    return range(job * batch.images_per_job, min((job + 1) * batch.images_per_job, batch.count))


def _drawn(generator: GeneratorParts, batch: Batch, images: range, options: DrawOptions) -> DrawnImages:
    """The images of a job, group by group."""
    request = generator.request(options)
    pixels, codes = [], []
    labels = [batch.labels[i % len(batch.labels)] for i in images]
    seeds = [batch.seed + i for i in images]
    for part in _groups(len(images), batch.batch_size):
        order = Order(labels=labels[part], seeds=seeds[part], sampling=request.sampling)
        codes_BT, _ = draw_best(generator.prior, order, request.best_of, show_progress=False)
        images_BCYX = decoded(generator.tokenizer, generator.spec.grid(codes_BT), decode_batch(generator.n_pixels))
        pixels.append(to_uint8(images_BCYX))
        codes.append(codes_BT.cpu().numpy())
    return DrawnImages(images, np.concatenate(pixels), np.concatenate(codes), labels, seeds)


def _groups(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _finish(files: ImageFiles, batch: Batch) -> None:
    durable.sweep(files.folder)
    files.finish([(i, batch.labels[i % len(batch.labels)], batch.seed + i) for i in range(batch.count)])
