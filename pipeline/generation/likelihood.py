"""Log-likelihood of images: log p of their codes under the prior."""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from foundation.arguments import as_paths, require_type
from foundation.codes.spec import CodeSpec
from foundation.errors import DataError
from foundation.images.buckets import grouped
from foundation.images.config import Preprocess
from foundation.images.failures import Failure
from foundation.images.preprocess import decode_any, to_unit_range
from foundation.images.scan import content_of
from foundation.threads import map_in_threads
from pipeline.engines.same_images import require_lost_here_too
from pipeline.engines.stream import Engine, LocalEngine, Movable, Step, Stream, in_order
from pipeline.generation.base import BaseGenerator, Label, Labels
from pipeline.generation.inputs import Images, grid_of, is_codes, pixels_of, read_codes
from pipeline.generation.requests import count, require_choice, require_one_or_all

Unit = Literal["bits", "nats"]
_MOST_AT_ONCE = 1 << 20


@torch.no_grad()
def score(
    pipe: BaseGenerator, images: Images, class_labels: Labels = None, *, unit: Unit = "bits", batch_size: int = 64
) -> torch.Tensor:
    """Log-likelihood of each image's codes.

    What the tokenizer loses has no probability, so that this is no likelihood of the pixels: it compares images under
    one generator, not generators.

    Args:
        pipe: the generator itself.
        images: a Pillow image, a list of them, (B, C, Y, X) in [-1, 1] of the tokenizer's size, or all their codes. Of
            a generator of several shapes, pictures take the shape nearest to their aspect ratio.
        class_labels: one of all images, one for each, or None for the null class, which a class-conditional prior knows
            only from label dropout in training.
        unit: bits for log2 p, nats for ln p.
        batch_size: images encoded and scored at once, 1 or more.

    Returns:
        (B,) float64 on the CPU, 0 or less.

    Raises:
        DataError: images of another shape, type or range, another number of labels, or an unknown class.
        ConfigError: another unit, or no class, of a prior that was trained with classes alone.
    """
    require_choice("unit", unit, ("bits", "nats"))
    batch_size = count("batch_size", batch_size)
    labels = pipe.label_ids(class_labels)
    grids = _grids_of(images, pipe)
    if len(set(grids)) < 2:
        nats_B = _nats(pipe, images, labels, grids[0] if grids else 0, batch_size)
    else:
        assert isinstance(images, (list, tuple))
        require_one_or_all("class_labels", len(labels), len(images))
        labels, nats_B = labels * (len(images) // len(labels)), torch.empty(len(images), dtype=torch.float64)
        for grid, rows in grouped(np.array(grids)):
            of_shape = [images[i] for i in rows.tolist()]
            nats_B[rows] = _nats(pipe, of_shape, [labels[i] for i in rows.tolist()], grid, batch_size)
    return -nats_B / (math.log(2) if unit == "bits" else 1.0)


def _grids_of(images: Any, pipe: BaseGenerator) -> list[int]:
    """The grid of each picture of a list; of anything else, one for all."""
    several = images if isinstance(images, (list, tuple)) else [images]
    return [grid_of(each, pipe.spec) for each in several]


def _nats(pipe: BaseGenerator, images: Any, labels: list[int], grid: int, batch_size: int) -> torch.Tensor:
    """-ln p of images of one shape, (B,) float64 on the CPU."""
    tokenizer, prior, spec = pipe.tokenizer, pipe.prior, pipe.spec.of_grid(grid)
    given = _all_codes(images, spec) if is_codes(images) else pixels_of(images, tokenizer.preprocess.of_shape(grid))
    require_one_or_all("class_labels", len(labels), len(given))
    labels_B = torch.tensor(labels, device=pipe.device).expand(len(given))
    parts = []
    for start in range(0, len(given), batch_size):
        part = slice(start, start + batch_size)
        batch = given[part] if isinstance(given, torch.Tensor) else to_unit_range(np.stack(given[part]))
        batch = batch.to(pipe.device)
        tokens_BT = tokenizer.tokens(batch.float()) if batch.is_floating_point() else batch
        parts.append(prior.nll(tokens_BT, labels_B[part], grid).cpu().double().sum(1))
    return torch.cat(parts)


def _all_codes(images: Any, spec: CodeSpec) -> torch.Tensor:
    codes_BP = read_codes(images, spec)
    found, expected = codes_BP.shape[1], spec.n_codes
    same = found == expected
    DataError.unless(same, "are not all codes of each image", field="images", found=found, expected=expected)
    return codes_BP


@dataclass(frozen=True)
class ScoredImage:
    """One image file and its likelihood.

    Attributes:
        image_id: its path.
        bits: -log2 of the probability of its codes: the fewer, the likelier.
        bits_per_code: the same by code.
        trained_on: whether its pixels were trained on; None if that is not known.
    """

    image_id: str
    bits: float
    bits_per_code: float
    trained_on: bool | None = None


def score_files(
    pipe: BaseGenerator,
    paths: Sequence[Path],
    class_label: Label | None,
    *,
    batch_size: int = 64,
    trained_on: Container[int] | None = None,
    engine: Engine | None = None,
) -> tuple[list[ScoredImage], list[str]]:
    """Score image files, the least likely first.

    Args:
        pipe: the generator.
        paths: of files.
        class_label: of all of them; None for no class.
        batch_size: files at a time: memory does not grow with their number.
        trained_on: hashes of the training images (``scan.content_of``), if they are known.
        engine: scores the batches; None scores them in this process.

    Returns:
        The readable ones, and a line for each other file.
    """
    require_type("pipe", pipe, BaseGenerator)
    batch_size, paths = min(count("batch_size", batch_size), _MOST_AT_ONCE), as_paths(paths, "paths")
    pipe.label_ids(class_label)
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    stream = Stream(
        "scoring",
        functools.partial(_open_scorer, Movable(pipe), class_label, batch_size),
        read=functools.partial(_open_reader, pipe.tokenizer.preprocess),
        device=pipe.device.type,
    )
    failed: list[str] = []
    scored: list[ScoredImage] = []
    given = ((i, [path.absolute() for path in each]) for i, each in enumerate(batches))
    results = in_order((engine or LocalEngine()).results(stream, given), range(len(batches)))
    with tqdm(total=len(paths), desc="scoring", unit="img", delay=2) as bar:
        for number, rows in results:
            for path, row in zip(batches[number], rows, strict=True):
                if isinstance(row, Failure):
                    require_lost_here_too(row, path.read_bytes)
                    failed.append(f"{path}: {row.reason}")
                    continue
                content, bits = row
                seen = None if trained_on is None else content in trained_on
                scored.append(ScoredImage(str(path), bits, bits / pipe.spec.n_codes, seen))
            bar.update(len(rows))
    return sorted(scored, key=lambda each: -each.bits), failed


_Read = tuple[int, np.ndarray] | Failure
"""hash and pixels of an image, or why it cannot be read"""


def _open_reader(preprocess: Preprocess) -> Step:
    """Paths of files => what was read of each."""

    def read_one(path: Path) -> _Read:
        try:
            image = decode_any(path.read_bytes(), arrays=not preprocess.is_plain)
            return content_of(image), preprocess(image)
        except (DataError, OSError, ValueError) as error:
            return Failure(str(path), str(error), "unavailable" if isinstance(error, OSError) else "unreadable")

    return lambda paths: map_in_threads(read_one, paths)


def _open_scorer(movable: Movable[BaseGenerator], class_label: Label | None, batch_size: int) -> Step:
    """What was read of some files => hash and bits of each, or the failure."""
    pipe = movable.content

    def score_all(read: list[_Read]) -> list[tuple[int, float] | Failure]:
        bits = [each if isinstance(each, Failure) else (each[0], 0.0) for each in read]
        images = {i: each for i, each in enumerate(read) if not isinstance(each, Failure)}
        for shape in sorted({pixels_YXC.shape[:2] for _, pixels_YXC in images.values()}):
            rows = [i for i, (_, pixels_YXC) in images.items() if pixels_YXC.shape[:2] == shape]
            pixels_BYXC = np.stack([images[i][1] for i in rows])
            log2_B = score(pipe, to_unit_range(pixels_BYXC), class_label, batch_size=batch_size)
            for i, each in zip(rows, (-log2_B).tolist(), strict=True):
                bits[i] = images[i][0], each
        return bits

    return score_all
