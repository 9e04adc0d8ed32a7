"""How well a prior predicts held-out codes, beside what a reader needs to judge the number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import trange

from foundation.code_usage import count_codes
from foundation.token_dataset import TokenDataset
from stage2_prior.data import CodeExamples
from stage2_prior.prior import PriorModel


@dataclass(frozen=True)
class PriorScores:
    """Held-out likelihood.

    Attributes:
        nats_per_code: mean negative log-likelihood.
        codes_per_image: length of a sequence.
        codebook_size: number of codes; a prior that knows nothing needs ln(codebook_size) nats.
        unigram_bits: entropy of the held-out codes' own frequencies, bits per code: what knowing how often each code
            occurs, and nothing else, could reach at best.
    """

    nats_per_code: float
    codes_per_image: int
    codebook_size: int
    unigram_bits: float

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
            "uniform_nats_per_code": math.log(self.codebook_size),
            "unigram_bits_per_code": self.unigram_bits,
        }


@torch.no_grad()
def score_prior(prior: PriorModel, held_out: TokenDataset, *, batch_size: int = 256) -> PriorScores:
    """Mean negative log-likelihood of every held-out code, given its image's class where the prior uses classes."""
    examples = CodeExamples(held_out, prior.n_classes)
    device = prior.head.weight.device
    total = 0.0
    for start in trange(0, len(examples), batch_size, desc="scoring the prior", unit="batch", delay=2, leave=False):
        indices = np.arange(start, min(start + batch_size, len(examples)))
        batch = examples.batch(indices, np.zeros_like(indices))
        tokens = batch["tokens"].to(device)
        logits = prior(tokens, batch["labels"].to(device))
        total += float(F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="sum"))
    unigram = count_codes(held_out.codes_NT, prior.vocab_size).entropy_bits
    return PriorScores(total / held_out.codes_NT.size, prior.n_codes, prior.vocab_size, unigram)
