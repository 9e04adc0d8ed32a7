"""Which classes samples have, and which shapes: as often as the training data."""

from __future__ import annotations

import numpy as np

from foundation.codes.dataset import TokenDataset
from foundation.hardware import TokenAccess
from foundation.randomness import permutation, uniforms
from pipeline.generation.base import BaseGenerator
from pipeline.runs.folder import RunFolder


def class_draws(shares: np.ndarray, n: int, seed: int) -> list[int]:
    """The class of each of n samples, in the proportions of the data: systematic sampling from a random start.

    Args:
        shares: (K,) how often each class occurs, of any sum above 0.
        n: samples.
        seed: of the start.
    """
    ends = np.cumsum(shares) / np.sum(shares)
    start = float(uniforms(np.zeros(1, int), np.zeros(1, int), "classes to tune on", seed)[0])
    drawn = np.searchsorted(ends, (start + np.arange(n)) / n, side="right").clip(0, len(shares) - 1)
    return [int(each) for each in drawn]


def class_shares(folder: RunFolder, generator: BaseGenerator) -> np.ndarray:
    """How often the training codes have each class, (K,)."""
    labels_N = TokenDataset(folder.codes, "train", TokenAccess(form="streamed")).labels_N
    n_classes = generator.prior.n_classes
    if labels_N is None:
        return np.ones(n_classes)
    return np.bincount(np.asarray(labels_N), minlength=n_classes)[:n_classes].astype(float)


def shape_draws(generator: BaseGenerator, n: int, seed: int) -> np.ndarray:
    """The shape of each of n samples, in the proportions of the data, whatever its class; (n,) indices."""
    counts = generator.grid_counts
    if not counts:
        return np.zeros(n, np.int64)
    return np.array(class_draws(np.array(counts), n, seed))[permutation(n, "shapes to tune on", seed)]
