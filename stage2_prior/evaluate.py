"""Scores a prior on validation codes, and draws the samples that training shows.

In training the codes are shared out over processes; see ``foundation.training.shares``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from foundation.codes.dataset import TokenDataset
from foundation.codes.spec import CodeSpec, require_codes
from foundation.codes.usage import UsageCounter, summarize
from foundation.errors import DataError
from foundation.images.buckets import grouped
from foundation.training.shares import Share, chosen_examples, read_ahead
from stage2_prior.decoding.decode import iterate_codes, stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel
from stage2_prior.scores import ClassScore, GridScore, PriorScores


@dataclass(frozen=True)
class CodeBatch:
    """Codes to score.

    Attributes:
        codes_BT: (B, T).
        labels_B: class numbers; None of codes without classes.
        grids_B: shape of each image; None where there is one.
    """

    codes_BT: np.ndarray
    labels_B: np.ndarray | None
    grids_B: np.ndarray | None


@dataclass(frozen=True)
class ScoredRows:
    """Rows of a token dataset that are scored, in chunks.

    Attributes:
        codes: the dataset.
        rows_N: indices of the rows.
        labels_N: their classes; None without any.
        grids_N: their shapes, 0 where there is one.
        batch_size: rows of a chunk; the last one may have fewer.
        has_shapes: whether there are several shapes.
    """

    codes: TokenDataset
    rows_N: np.ndarray
    labels_N: np.ndarray | None
    grids_N: np.ndarray
    batch_size: int
    has_shapes: bool

    @classmethod
    def of(cls, codes: TokenDataset, spec: CodeSpec, batch_size: int, limit: int | None = None) -> ScoredRows:
        """The rows to score; see ``score_prior``.

        Raises:
            DataError: there are no codes.
        """
        if len(codes.codes_NT) == 0:
            raise DataError("there are no codes to score", field="validation", found=0, expected="one image or more")
        rows_N = chosen_examples(len(codes.codes_NT), limit)
        labels = codes.labels_N if spec.class_names else None
        labels_N = None if labels is None else np.asarray(labels)[rows_N]
        return cls(codes, rows_N, labels_N, _grids_of(codes, spec, rows_N), batch_size, spec.n_grids > 1)

    def batch(self, chunk: slice) -> CodeBatch:
        """The codes of a chunk."""
        labels_B = None if self.labels_N is None else self.labels_N[chunk]
        grids_B = self.grids_N[chunk] if self.has_shapes else None
        return CodeBatch(np.asarray(self.codes.codes_NT[self.rows_N[chunk]]), labels_B, grids_B)


class CodeEntropy:
    """Entropy of the frequencies of codes, bits per code."""

    def __init__(self, spec: CodeSpec) -> None:
        self._counter = UsageCounter(spec)

    def add(self, codes_BT: np.ndarray) -> None:
        """Count the codes of some images."""
        self._counter.add(codes_BT)

    def bits(self, share: Share) -> float:
        """Of all processes."""
        return summarize(self._counter.usages(share)).entropy_bits


class ChannelMoments:
    """Differential entropy of a Gaussian with each channel's mean and variance, bits per value on average."""

    def __init__(self, spec: CodeSpec) -> None:
        self._sums_3C = np.zeros((3, spec.levels[0].depth))

    def add(self, codes_BT: np.ndarray) -> None:
        """Take in the latents of some images."""
        values = codes_BT.astype(np.uint16).view(np.float16).reshape(-1, self._sums_3C.shape[1]).astype(np.float64)
        self._sums_3C += np.stack([np.full(values.shape[1], len(values)), values.sum(0), np.square(values).sum(0)])

    def bits(self, share: Share) -> float:
        """Of all processes."""
        count, total, squares = share.joined(self._sums_3C)
        variance_C = np.maximum(squares / count - np.square(total / count), np.finfo(np.float64).tiny)
        return float(0.5 * np.log2(2 * np.pi * np.e * variance_C).mean())


class PriorTally:
    """Adds up the likelihoods of chunks, in the order of the rows, whatever the order in which they come."""

    def __init__(self, rows: ScoredRows, prior: PriorModel) -> None:
        spec = prior.spec
        self._rows, self._spec, self._is_estimate = rows, spec, prior.is_masked
        self._counter = ChannelMoments(spec) if spec.latents else CodeEntropy(spec)
        n_images = len(rows.rows_N)
        self._nats_CGT = np.zeros((-(-n_images // rows.batch_size), spec.n_grids, spec.n_codes))
        self._nats_N = np.zeros(n_images)

    def add(self, chunk: slice, codes_BT: np.ndarray, nats_BT: np.ndarray) -> None:
        """Take the codes of a chunk and their (B, T) float64 nats."""
        self._counter.add(codes_BT)
        self._nats_N[chunk] = nats_BT.sum(1)
        for grid, places in grouped(self._rows.grids_N[chunk]):
            self._nats_CGT[chunk.start // self._rows.batch_size, grid] = nats_BT[places].sum(0)

    def scores(self, share: Share | None = None) -> PriorScores:
        """The scores of all rows, of all processes."""
        share, rows, spec = share or Share(), self._rows, self._spec
        nats_GT, n_images = share.joined(self._nats_CGT).sum(0), len(rows.rows_N)
        nats_N = share.joined(self._nats_N)
        classes = () if rows.labels_N is None else _by_class(spec, rows.labels_N, nats_N)
        occurring = grouped(rows.grids_N) if spec.n_grids > 1 else []
        grids = {grid: GridScore(len(places), nats_GT[grid] / len(places)) for grid, places in occurring}
        bits = self._counter.bits(share)
        mean_T = nats_GT.sum(0) / n_images
        return PriorScores(spec, n_images, mean_T, classes, bits, grids, self._is_estimate)


def score_prior(
    prior: PriorModel,
    validation: TokenDataset,
    *,
    batch_size: int = 256,
    limit: int | None = None,
    share: Share | None = None,
    arithmetic: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> PriorScores:
    """Negative log-likelihood of every validation code, given its image's class where the prior uses classes.

    One pass in batches, of which the next one is read while one is scored: memory grows by a number for each image, and
    by one for each position and batch. Dropout is off.

    Args:
        prior: as it is; equal on every process.
        validation: the codes, possibly memory-mapped.
        batch_size: images at a time, whatever the number of processes.
        limit: most rows to score, see ``chosen_examples``; None scores all.
        share: of several processes, each of which calls this and gets the scores of all; None scores all here.
        arithmetic: the context of each forward pass, such as the autocast of training.

    Raises:
        DataError: there are no codes, or they do not fit the prior's.
    """
    share, rows = share or Share(), ScoredRows.of(validation, prior.spec, batch_size, limit)
    tally, chunks = PriorTally(rows, prior), share.chunks(len(rows.rows_N), batch_size)
    was_training = prior.training
    prior.eval()
    try:
        with tqdm(total=len(chunks), desc="scoring the prior", unit="batch", delay=2, leave=False) as progress:
            for chunk, batch in read_ahead(rows.batch, chunks):
                with arithmetic():
                    tally.add(chunk, batch.codes_BT, nats_of(prior, batch))
                progress.update()
    finally:
        prior.train(was_training)
    return tally.scores(share)


def _grids_of(codes: TokenDataset, spec: CodeSpec, chosen_N: np.ndarray) -> np.ndarray:
    """The grid of each chosen row, (N,) int64; 0 where images have one shape."""
    if spec.n_grids == 1 or codes.grids_N is None:
        return np.zeros(len(chosen_N), np.int64)
    return np.asarray(codes.grids_N)[chosen_N].astype(np.int64)


def _by_class(spec: CodeSpec, labels_N: np.ndarray, nats_N: np.ndarray) -> tuple[ClassScore, ...]:
    """Scores of the classes that occur, from each image's nats."""
    n_named = len(spec.class_names)
    nats_L = np.bincount(labels_N, nats_N, minlength=n_named)
    images_L = np.bincount(labels_N, minlength=n_named)
    bits_L = nats_L / (np.maximum(images_L, 1) * spec.n_codes * math.log(2))
    rows = zip(spec.class_names, images_L.tolist(), bits_L.tolist(), strict=True)
    return tuple(ClassScore(*row) for row in rows if row[1])


@torch.no_grad()
def nats_of(prior: PriorModel, batch: CodeBatch, order: str | None = None) -> np.ndarray:
    """Negative log-likelihood of each code, (B, T) float64, of a prior in evaluation mode.

    Args:
        prior: as it is.
        batch: the codes.
        order: see ``PriorModel.nll``; None takes raster, or random of a masked prior.

    Raises:
        DataError: codes that do not fit the prior's.
    """
    require_codes(batch.codes_BT, prior.spec)
    labels_B = batch.labels_B
    if labels_B is None or not prior.n_classes:
        labels_B = np.full(len(batch.codes_BT), prior.null_class)
    device = prior.head.weight.device
    tokens = torch.from_numpy(batch.codes_BT.astype(np.int64)).to(device)
    labels = torch.from_numpy(labels_B.astype(np.int64)).to(device)
    grids = None if batch.grids_B is None else torch.from_numpy(batch.grids_B).to(device)
    order = order or ("random" if prior.is_masked else "raster")
    return prior.nll(tokens, labels, grids, order=order).cpu().double().numpy()


@dataclass(frozen=True)
class PreviewSamples:
    """How samples are drawn and shown in training.

    Attributes:
        sampling: guidance, temperature and filters.
        show: (B, T) int64 codes => a picture.
    """

    sampling: SamplingConfig
    show: Callable[[torch.Tensor], Image.Image]


@torch.no_grad()
def sample_preview(prior: PriorModel, n_images: int, sampling: SamplingConfig, seed: int) -> torch.Tensor:
    """Codes of some images, the same for equal weights and arguments, whatever has been computed before.

    Classes are spread evenly. torch's random state stays as it is.

    Args:
        prior: in evaluation mode.
        n_images: how many.
        sampling: guidance, temperature and filters.
        seed: image i has the stream of ``seed + i``.

    Returns:
        (B, T) int64 on the prior's device.
    """
    n_classes, device = prior.n_classes, prior.head.weight.device
    spread = np.linspace(0, n_classes - 1, n_images).round() if n_classes else np.full(n_images, prior.null_class)
    labels_B = torch.from_numpy(spread.astype(np.int64)).to(device)
    codes_BT = torch.empty((n_images, prior.n_codes), dtype=torch.int64, device=device)
    seeds = range(seed, seed + n_images)
    uniforms_BT = stream_uniforms(seeds, prior.n_codes)
    for step in iterate_codes(prior.within_codebook(), labels_B, uniforms_BT, sampling, seeds=seeds):
        codes_BT[step.rows].scatter_(1, step.positions_BK, step.codes_BK)
    return codes_BT
