"""Training examples of a prior: rows of a token dataset, with label dropout keyed by sample."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from foundation.codes.dataset import ImageViews, TokenDataset
from foundation.randomness import uniforms


class CodeExamples:
    """Batches of codes and labels.

    Args:
        dataset: the codes.
        n_classes: 0 for an unconditional prior, whose labels are all the null class.
        label_dropout: share of labels replaced by the null class, random for each (sample, epoch).
        views: ``all``: an example is one stored view of an image, and an epoch passes over all views. ``one``: an
            example is an image, in a stored view that is random for each (image, epoch).
        seed: of the label dropout and the views.

    Raises:
        DataError: with ``one``, rows that do not hold the same views of every image.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        n_classes: int,
        *,
        label_dropout: float = 0.0,
        views: Literal["all", "one"] = "all",
        seed: int = 0,
    ) -> None:
        self.codes_NT, self.n_classes = dataset.codes_NT, n_classes
        self.labels_N, self.grids_N = dataset.labels_N if n_classes else None, dataset.grids_N
        self.label_dropout, self.seed = label_dropout, seed
        self.views = ImageViews(dataset.views_N, dataset.rows_by_shard) if views == "one" else None

    def __len__(self) -> int:
        return len(self.codes_NT) if self.views is None else len(self.views)

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """``tokens`` (B, T) int64, ``labels`` (B,) int64 and, where there are several, ``grids`` (B,) int64."""
        rows = self._rows(indices, epochs)
        if self.labels_N is None:
            labels = np.full(len(indices), self.n_classes, np.int64)
        else:
            dropped = uniforms(indices, epochs, self.seed, "label dropout") < self.label_dropout
            labels = np.where(dropped, self.n_classes, self.labels_N[rows])
        tokens = self.codes_NT[rows].astype(np.int64)
        examples = {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}
        if self.grids_N is not None:
            examples["grids"] = torch.from_numpy(self.grids_N[rows].astype(np.int64))
        return examples

    def _rows(self, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        if self.views is None:
            return indices
        view = uniforms(indices, epochs, self.seed, "view") * self.views.n_views
        return self.views.rows(indices, view.astype(np.int64))
