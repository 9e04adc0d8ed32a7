"""How well a prior predicts held-out codes, beside what a reader needs to judge the number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import trange

from foundation.code_positions import code_positions
from foundation.code_usage import count_codes_by_slot, summarize
from foundation.codes import CodeSlot
from foundation.token_dataset import TokenDataset
from stage2_prior.data import CodeExamples
from stage2_prior.prior import PriorModel


@dataclass(frozen=True)
class PriorScores:
    """Held-out likelihood.

    Attributes:
        nats_per_slot: mean negative log-likelihood of the codes of each slot, nats per code.
        slots: the codebooks, one for each depth of each level.
        unigram_bits: entropy of the held-out codes' own frequencies in each slot, bits per code on average over all
            codes: what knowing the slot and how often each of its codes occurs, and nothing else, could reach at best.
    """

    nats_per_slot: tuple[float, ...]
    slots: tuple[CodeSlot, ...]
    unigram_bits: float

    @property
    def codes_per_image(self) -> int:
        """Length of a sequence."""
        return sum(slot.n_codes for slot in self.slots)

    @property
    def nats_per_code(self) -> float:
        """Mean negative log-likelihood over all codes."""
        return self._mean(self.nats_per_slot)

    @property
    def uniform_nats(self) -> float:
        """What a prior that knows nothing needs: ln(codebook size), nats per code on average."""
        return self._mean([math.log(slot.codebook_size) for slot in self.slots])

    @property
    def bits_per_code(self) -> float:
        """nats_per_code / ln 2."""
        return self.nats_per_code / math.log(2)

    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        return {
            "bits_per_code": self.bits_per_code,
            "below_unigram": 1.0 - self.bits_per_code / self.unigram_bits if self.unigram_bits else 0.0,
            "bits_per_image": self.bits_per_code * self.codes_per_image,
            "nats_per_code": self.nats_per_code,
            "uniform_nats_per_code": self.uniform_nats,
            "unigram_bits_per_code": self.unigram_bits,
            **self._bits_per_slot(),
        }

    def _bits_per_slot(self) -> dict[str, float]:
        """``bits_per_code_level0_depth1`` and so on; none where there is one slot, which is then all codes."""
        if len(self.slots) == 1:
            return {}
        pairs = zip(self.slots, self.nats_per_slot, strict=True)
        return {f"bits_per_code_level{slot.level}_depth{slot.depth}": nats / math.log(2) for slot, nats in pairs}

    def _mean(self, per_slot: Sequence[float]) -> float:
        """Average over codes of a figure that each slot has."""
        if len(per_slot) == 1:
            return per_slot[0]
        total = sum(slot.n_codes * value for slot, value in zip(self.slots, per_slot, strict=True))
        return total / self.codes_per_image


@torch.no_grad()
def score_prior(prior: PriorModel, held_out: TokenDataset, *, batch_size: int = 256) -> PriorScores:
    """Mean negative log-likelihood of every held-out code, given its image's class where the prior uses classes."""
    examples = CodeExamples(held_out, prior.n_classes)
    device = prior.head.weight.device
    nats_T = torch.zeros(prior.n_codes, dtype=torch.float64)
    for start in trange(0, len(examples), batch_size, desc="scoring the prior", unit="batch", delay=2, leave=False):
        indices = np.arange(start, min(start + batch_size, len(examples)))
        batch = examples.batch(indices, np.zeros_like(indices))
        tokens = batch["tokens"].to(device)
        logits = prior(tokens, batch["labels"].to(device))
        nats = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
        nats_T += nats.view_as(tokens).double().sum(0).cpu()
    slots, slot_T = prior.spec.slots, code_positions(prior.spec).slot_T
    per_slot = np.bincount(slot_T, nats_T.numpy(), minlength=len(slots)) / np.bincount(slot_T) / len(examples)
    unigram = summarize(count_codes_by_slot(held_out.codes_NT, prior.spec))
    return PriorScores(tuple(per_slot.tolist()), slots, unigram.entropy_bits)
