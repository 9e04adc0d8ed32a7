"""Likelihood of validation codes under a prior, beside uniform and unigram baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import trange

from foundation.codes.dataset import TokenDataset
from foundation.codes.spec import CodeSlot, CodeSpec, code_positions
from foundation.codes.usage import CodeUsage, count_codes_by_slot, summarize
from foundation.errors import DataError
from stage2_prior.prior import PriorModel


@dataclass(frozen=True)
class ClassScore:
    """Likelihood of the images of one class.

    Attributes:
        name: of the class.
        n_images: how many there were, 1 or more.
        bits_per_code: mean over their codes.
    """

    name: str
    n_images: int
    bits_per_code: float


@dataclass(frozen=True)
class GridScore:
    """Likelihood of the images of one shape.

    Attributes:
        n_images: how many there were, 1 or more.
        nats_T: (T,) float64, as of ``PriorScores``.
    """

    n_images: int
    nats_T: np.ndarray


@dataclass(frozen=True)
class PriorScores:
    """Validation likelihood.

    Attributes:
        spec: of the codes.
        n_images: images scored, each view for itself.
        nats_T: (T,) float64, mean negative log-likelihood at each position of the sequence, nats per code.
        classes: by class number, classes without images left out; empty where the codes have no labels. Also of an
            unconditional prior, which does not see them.
        unigram_bits: entropy of the validation codes' own frequencies in each slot, bits per code on average over all
            codes: the best that code frequencies of each slot, and nothing else, can reach.
        grids: where images have several shapes, the likelihood of those of each grid that occurs, by its number.
    """

    spec: CodeSpec
    n_images: int
    nats_T: np.ndarray
    classes: tuple[ClassScore, ...]
    unigram_bits: float
    grids: Mapping[int, GridScore] = field(default_factory=dict)

    @property
    def nats_per_slot(self) -> tuple[float, ...]:
        """Mean negative log-likelihood of the codes of each slot, nats per code."""
        slot_T = code_positions(self.spec).slot_T
        return tuple((np.bincount(slot_T, self.nats_T) / np.bincount(slot_T)).tolist())

    @property
    def nats_per_code(self) -> float:
        """Mean negative log-likelihood over all codes."""
        return self._mean(self.nats_per_slot)

    @property
    def uniform_nats(self) -> float:
        """What a prior that knows nothing needs: ln(codebook size), nats per code on average."""
        return self._mean([math.log(slot.codebook_size) for slot in self.spec.slots])

    @property
    def uniform_bits(self) -> float:
        """uniform_nats / ln 2."""
        return self.uniform_nats / math.log(2)

    @property
    def bits_per_code(self) -> float:
        """nats_per_code / ln 2."""
        return self.nats_per_code / math.log(2)

    @property
    def bits_per_image(self) -> float:
        """Bits of all codes of an image together."""
        return self.bits_per_code * self.spec.n_codes

    @property
    def bits_per_value(self) -> float:
        """bits_per_image / (Y * X * C): "per pixel dimension", as likelihoods of images are given.

        It is the likelihood of the codes. What the tokenizer loses has no probability here, so that it is no
        likelihood of the pixels and no bound on one: a tokenizer that keeps less makes it smaller. Compare it between
        priors of one tokenizer, or beside the tokenizer's distortion.
        """
        preprocess = self.spec.preprocess
        return self.bits_per_image / (preprocess.height * preprocess.width * preprocess.n_channels)

    def bits_by_place(self) -> list[tuple[CodeSlot, np.ndarray]]:
        """Each slot with the (H, W) mean bits of its codes at each position of the grid.

        Where images have several shapes, the slots of each grid that occurs.
        """
        if not self.grids:
            return _by_place(self.nats_T, self.spec)
        of_grids = (_by_place(each.nats_T, self.spec.of_grid(grid)) for grid, each in self.grids.items())
        return [row for rows in of_grids for row in rows]

    def metrics(self) -> dict[str, float]:
        """Numbers for the log; of the classes only the two extremes, by number."""
        return {
            "bits_per_code": self.bits_per_code,
            "below_unigram": 1.0 - self.bits_per_code / self.unigram_bits if self.unigram_bits else 0.0,
            "bits_per_image": self.bits_per_image,
            "nats_per_code": self.nats_per_code,
            "uniform_nats_per_code": self.uniform_nats,
            "unigram_bits_per_code": self.unigram_bits,
            **self._bits_per_slot(),
            **self._bits_per_grid(),
            **self._extreme_classes(),
        }

    def _bits_per_slot(self) -> dict[str, float]:
        """``bits_per_code_level0_depth1`` and so on; none where there is one slot, which is then all codes."""
        if len(self.spec.slots) == 1:
            return {}
        pairs = zip(self.spec.slots, self.nats_per_slot, strict=True)
        return {f"bits_per_code_level{slot.level}_depth{slot.depth}": nats / math.log(2) for slot, nats in pairs}

    def _bits_per_grid(self) -> dict[str, float]:
        """``bits_per_code_grid0`` and so on; none where images have one shape."""
        return {f"bits_per_code_grid{i}": float(each.nats_T.mean()) / math.log(2) for i, each in self.grids.items()}

    def _extreme_classes(self) -> dict[str, float]:
        if len(self.classes) < 2:
            return {}
        worst = max(self.classes, key=lambda each: each.bits_per_code)
        best = min(self.classes, key=lambda each: each.bits_per_code)
        return {
            "worst_class": float(self.spec.class_names.index(worst.name)),
            "worst_class_bits_per_code": worst.bits_per_code,
            "best_class": float(self.spec.class_names.index(best.name)),
            "best_class_bits_per_code": best.bits_per_code,
        }

    def _mean(self, per_slot: Sequence[float]) -> float:
        """Average over codes of a figure that each slot has."""
        if len(per_slot) == 1:
            return per_slot[0]
        total = sum(slot.n_codes * value for slot, value in zip(self.spec.slots, per_slot, strict=True))
        return total / self.spec.n_codes


@torch.no_grad()
def score_prior(prior: PriorModel, validation: TokenDataset, *, batch_size: int = 256) -> PriorScores:
    """Negative log-likelihood of every validation code, given its image's class where the prior uses classes.

    One pass in batches: memory does not grow with the number of images. Dropout is off.

    Args:
        prior: as it is.
        validation: the codes, possibly memory-mapped.
        batch_size: images at a time.

    Raises:
        DataError: there are no codes, or they do not fit the prior's.
    """
    n_images, spec = len(validation.codes_NT), prior.spec
    if n_images == 0:
        raise DataError("there are no codes to score", field="validation", found=0, expected="one image or more")
    labels_N = validation.labels_N if spec.class_names else None
    grids_N, nats_GT, images_G = None, np.zeros((spec.n_grids, spec.n_codes)), np.zeros(spec.n_grids, np.int64)
    if spec.n_grids > 1:
        grids_N = validation.grids_N
    n_named = 0 if labels_N is None else len(spec.class_names)
    nats_T, nats_L, images_L = np.zeros(spec.n_codes), np.zeros(n_named), np.zeros(n_named, np.int64)
    usages: list[CodeUsage] = []
    was_training = prior.training
    prior.eval()
    try:
        for start in trange(0, n_images, batch_size, desc="scoring the prior", unit="batch", delay=2, leave=False):
            codes_BT = np.asarray(validation.codes_NT[start : start + batch_size])
            found = count_codes_by_slot(codes_BT, spec)
            usages = [a + b for a, b in zip(usages, found, strict=True)] if usages else found
            labels_B = None if labels_N is None else np.asarray(labels_N[start : start + batch_size])
            grids_B = None if grids_N is None else np.asarray(grids_N[start : start + batch_size]).astype(np.int64)
            nats_BT = _nats(prior, codes_BT, labels_B, grids_B)
            nats_T += nats_BT.sum(0)
            if grids_B is not None:
                np.add.at(nats_GT, grids_B, nats_BT)
                images_G += np.bincount(grids_B, minlength=len(images_G))
            if labels_B is not None:
                nats_L += np.bincount(labels_B, nats_BT.sum(1), minlength=n_named)
                images_L += np.bincount(labels_B, minlength=n_named)
    finally:
        prior.train(was_training)
    bits_L = nats_L / (np.maximum(images_L, 1) * spec.n_codes * math.log(2))
    rows = zip(spec.class_names[:n_named], images_L.tolist(), bits_L.tolist(), strict=True)
    classes = tuple(ClassScore(*row) for row in rows if row[1])
    grids = {i: GridScore(n, nats_GT[i] / n) for i, n in enumerate(images_G.tolist()) if n}
    return PriorScores(spec, n_images, nats_T / n_images, classes, summarize(usages).entropy_bits, grids)


def _by_place(nats_T: np.ndarray, spec: CodeSpec) -> list[tuple[CodeSlot, np.ndarray]]:
    """Each slot of images of one shape with (H, W) bits."""
    slot_T, bits_T = code_positions(spec).slot_T, nats_T / math.log(2)
    shapes = [(spec.levels[slot.level].height, spec.levels[slot.level].width) for slot in spec.slots]
    return [(slot, bits_T[slot_T == i].reshape(shapes[i])) for i, slot in enumerate(spec.slots)]


def _nats(
    prior: PriorModel, codes_BT: np.ndarray, labels_B: np.ndarray | None, grids_B: np.ndarray | None
) -> np.ndarray:
    """(B, T) float64."""
    if labels_B is None or not prior.n_classes:
        labels_B = np.full(len(codes_BT), prior.null_class)
    device = prior.head.weight.device
    tokens = torch.from_numpy(codes_BT.astype(np.int64)).to(device)
    labels = torch.from_numpy(labels_B.astype(np.int64)).to(device)
    grids = None if grids_B is None else torch.from_numpy(grids_B).to(device)
    return prior.nll(tokens, labels, grids).cpu().double().numpy()
