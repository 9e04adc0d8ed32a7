"""Training examples for the prior: rows of a token dataset, with label dropout keyed by sample."""

from __future__ import annotations

import numpy as np
import torch

from foundation.randomness import uniforms
from foundation.token_dataset import TokenDataset


class CodeExamples:
    """Batches of codes and labels.

    Args:
        dataset: the codes.
        n_classes: 0 for an unconditional prior, whose labels are all the null class.
        label_dropout: share of labels replaced by the null class, drawn for each (sample, epoch).
        seed: of the label dropout.
    """

    def __init__(self, dataset: TokenDataset, n_classes: int, *, label_dropout: float = 0.0, seed: int = 0) -> None:
        self.codes_NT, self.n_classes = dataset.codes_NT, n_classes
        self.labels_N = dataset.labels_N if n_classes else None
        self.label_dropout, self.seed = label_dropout, seed

    def __len__(self) -> int:
        return len(self.codes_NT)

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """``tokens`` (B, T) int64 and ``labels`` (B,) int64."""
        if self.labels_N is None:
            labels = np.full(len(indices), self.n_classes, np.int64)
        else:
            dropped = uniforms(indices, epochs, self.seed, "label dropout") < self.label_dropout
            labels = np.where(dropped, self.n_classes, self.labels_N[indices])
        tokens = self.codes_NT[indices].astype(np.int64)
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}
