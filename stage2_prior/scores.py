"""What a prior's likelihood of validation codes is, beside uniform and unigram baselines, by slot, place and class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foundation.codes.spec import CodeSlot, CodeSpec, code_positions


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
            codes: the best that code frequencies of each slot, and nothing else, can reach. Of latents, that of a
            Gaussian of each channel with its mean and variance.
        grids: where images have several shapes, the likelihood of those of each grid that occurs, by its number.
        is_estimate: whether it is a masked prior's mean over orders, estimated with one mask for each image.
    """

    spec: CodeSpec
    n_images: int
    nats_T: np.ndarray
    classes: tuple[ClassScore, ...]
    unigram_bits: float
    grids: Mapping[int, GridScore] = field(default_factory=dict)
    is_estimate: bool = False

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
        """Each slot with the (H, W) mean bits of its codes at each position of the grid; of latents bits per value.

        Where images have several shapes, the slots of each grid that occurs.
        """
        if not self.grids:
            return _by_place(self.nats_T, self.spec)[: 1 if self.spec.latents else None]
        of_grids = (_by_place(each.nats_T, self.spec.of_grid(grid)) for grid, each in self.grids.items())
        return [row for rows in of_grids for row in rows]

    def metrics(self) -> dict[str, float]:
        """Numbers for the log; of the classes only the two extremes, by number."""
        return {
            "bits_per_code": self.bits_per_code,
            **self._below_unigram(),
            "bits_per_image": self.bits_per_image,
            "nats_per_code": self.nats_per_code,
            "uniform_nats_per_code": self.uniform_nats,
            "unigram_bits_per_code": self.unigram_bits,
            **self._bits_per_slot(),
            **self._bits_per_grid(),
            **self._extreme_classes(),
        }

    def _below_unigram(self) -> dict[str, float]:
        """The share of bits below code frequencies; of latents, whose bits may be negative, the difference."""
        if self.spec.latents:
            return {"bits_below_gaussian": self.unigram_bits - self.bits_per_code}
        return {"below_unigram": 1.0 - self.bits_per_code / self.unigram_bits if self.unigram_bits else 0.0}

    def _bits_per_slot(self) -> dict[str, float]:
        """``bits_per_code_level0_depth1`` and so on; none where there is one slot, which is then all codes."""
        if len(self.spec.slots) == 1 or self.spec.latents:
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


def _by_place(nats_T: np.ndarray, spec: CodeSpec) -> list[tuple[CodeSlot, np.ndarray]]:
    """Each slot of images of one shape with (H, W) bits."""
    slot_T, bits_T = code_positions(spec).slot_T, nats_T / math.log(2)
    shapes = [(spec.levels[slot.level].height, spec.levels[slot.level].width) for slot in spec.slots]
    return [(slot, bits_T[slot_T == i].reshape(shapes[i])) for i, slot in enumerate(spec.slots)]
