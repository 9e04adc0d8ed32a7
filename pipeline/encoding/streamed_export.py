"""An export whose batches are encoded by an engine; this process alone writes, the same files as the local engine.

A batch holds the images that it holds in a local export, so its codes are the same. Few files are open at a time:
batches are given out file by file, and a file is written once its last batch has come.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.errors import ContractError
from foundation.images.config import Preprocess
from foundation.images.failures import Failure
from foundation.images.sources import ImageSource, require_here, some_images
from foundation.threads import map_in_threads
from foundation.training.arithmetic import Arithmetic
from pipeline.encoding.encoder import BatchEncoder, Decoded, read_views
from pipeline.encoding.export import Export
from pipeline.encoding.plan import PlannedShard
from pipeline.engines.same_images import require_lost_here_too
from pipeline.engines.stream import Engine, PackedFolder, Step, Stream
from stage1_tokenizer.canary import load_checked


@dataclass(frozen=True)
class ImageBatch:
    """Some images on their way to be encoded.

    Attributes:
        source: the images alone, see ``some_images``.
        names: their ids.
        views: of each.
        grid: their shape, an index into ``Preprocess.all_shapes``; None where there is one.
    """

    source: ImageSource
    names: list[str]
    views: tuple[int, ...]
    grid: int | None


@dataclass
class _OpenShard:
    """A file whose batches come in."""

    planned: PlannedShard
    codes_VNT: np.ndarray
    n_left: int
    failures: dict[int, Failure] = field(default_factory=dict)


def encode_on(engine: Engine, export: Export, *, quiet: bool = False) -> None:
    """Encode and write the files of an export that are missing.

    Args:
        engine: computes the batches.
        export: opened in this process, which writes.
        quiet: no progress bar.

    Raises:
        DataError: a worker's machine has not the images that are here.
        ContractError: a worker's tokenizer makes other codes, or is on another kind of device than the plan's.
        StorageError: the disk refused; what is written stays.
        TesseraError: the engine cannot go on.
        Interrupted: on SIGTERM or SIGINT.
    """
    missing = [each for each in export.shards if not export.is_written(each)]
    given: dict[int, tuple[PlannedShard, list[int]]] = {}
    n_batches: dict[str, int] = {}
    opened: dict[str, _OpenShard] = {}
    n_there = export.plan.n_images - sum(each.n_images for each in missing)
    results = engine.results(_stream(export), _batches(export, missing, given, n_batches))
    with tqdm(total=export.plan.n_images, initial=n_there, desc="encoding", unit="img", delay=2, disable=quiet) as bar:
        for number, (codes_VBT, failures) in results:
            planned, numbers = given.pop(number)
            if planned.name not in opened:
                shape = (len(planned.views), planned.n_images, export.spec.n_codes)
                opened[planned.name] = _OpenShard(planned, np.zeros(shape, np.int64), n_batches.pop(planned.name))
            shard = opened[planned.name]
            failed = {numbers[i]: each for i, each in failures.items()}
            for n, each in failed.items():
                require_lost_here_too(each, functools.partial(export.sources[planned.split].read, n))
            shard.failures |= failed
            columns = [n - planned.start for i, n in enumerate(numbers) if i not in failures]
            shard.codes_VNT[:, columns] = codes_VBT
            shard.n_left -= 1
            bar.update(len(numbers))
            if not shard.n_left:
                export.publish(planned, export.encoder.shard(planned, shard.codes_VNT, shard.failures))
                del opened[planned.name]


def _batches(
    export: Export,
    missing: list[PlannedShard],
    given: dict[int, tuple[PlannedShard, list[int]]],
    n_batches: dict[str, int],
) -> Iterator[tuple[int, ImageBatch]]:
    """The batches of the missing files, each noted as given out, and their number by file."""
    count = 0
    for planned in missing:
        source, split = export.sources[planned.split], export.plan.splits[planned.split]
        batches = list(export.encoder.numbers(planned, range(planned.start, planned.stop)))
        n_batches[planned.name] = len(batches)
        for numbers in batches:
            names = [split.image_ids[n] for n in numbers]
            grid = None if split.grids is None else int(split.grids[numbers[0]])
            given[count] = planned, numbers
            yield count, ImageBatch(some_images(source, np.array(numbers)), names, planned.views, grid)
            count += 1


def _stream(export: Export) -> Stream:
    plan, preprocess = export.plan, export.tokenizer.preprocess
    how: dict[str, Any] = {"batch_size": plan.batch_size, "precision": plan.precision, "device": plan.device}
    return Stream(
        "encoding",
        functools.partial(_open_encoder, PackedFolder.of(export.tokenizer_folder), preprocess, **how),
        read=functools.partial(_open_reader, preprocess, plan.corner_scale),
        device=plan.device,
    )


def _open_reader(preprocess: Preprocess, corner_scale: float) -> Step:
    """An ``ImageBatch`` => the shape of its images, and their pixels or failures."""

    def read(batch: ImageBatch) -> tuple[int | None, list[Decoded]]:
        require_here(batch.source)
        shape = _of_grid(preprocess, batch.grid)
        read_one = functools.partial(
            read_views, batch.source, preprocess=shape, views=batch.views, corner_scale=corner_scale
        )
        return batch.grid, map_in_threads(read_one, range(len(batch.names)), batch.names)

    return read


def _open_encoder(
    folder: PackedFolder, preprocess: Preprocess, *, batch_size: int, precision: Arithmetic, device: str
) -> Step:
    """What a reader returns => (views, images with pixels, T) codes, and failures by position in the batch.

    Raises:
        ContractError, CheckpointError: the tokenizer does not do here what it did when it was frozen.
    """
    with folder.unpacked() as there:
        tokenizer = load_checked(there, torch.device(device))
    found, fix = next(tokenizer.parameters()).device.type, "take machines of one kind, or encode on CPUs"
    what = "the worker's codes would be of another kind of device than the plan's"
    ContractError.unless(found == device, what, field="device", found=found, expected=device, fix=fix)
    encoder = BatchEncoder(tokenizer, batch_size, precision)

    def encode(batch: tuple[int | None, list[Decoded]]) -> tuple[np.ndarray, dict[int, Failure]]:
        grid, decoded = batch
        failures = {i: each for i, each in enumerate(decoded) if isinstance(each, Failure)}
        return encoder.encode(decoded, _of_grid(preprocess, grid)), failures

    return encode


def _of_grid(preprocess: Preprocess, grid: int | None) -> Preprocess:
    return preprocess if grid is None else preprocess.of_shape(grid)
