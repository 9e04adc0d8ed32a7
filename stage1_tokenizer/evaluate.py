"""How good a tokenizer is, over a whole set of images: PSNR, code usage, perplexity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import trange

from foundation.code_usage import CodeUsage
from foundation.image_set import ImageSet
from stage1_tokenizer.tokenizer import TokenizerModel


def psnr(images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,).

    Both arguments are in [-1, 1] (reconstructions are clamped to it), so the peak-to-peak range is 2. An exact
    reconstruction counts as 100 dB.
    """
    error = (images_BCYX.float() - reconstructions_BCYX.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return (10 * torch.log10(4.0 / error.clamp_min(4e-10))).clamp_max(100.0)


@dataclass(frozen=True)
class TokenizerScores:
    """Averages over a whole set.

    Attributes:
        psnr: mean over images, dB.
        l1: mean absolute error of values in [-1, 1].
        usage: which codes occurred, how often.
    """

    psnr: float
    l1: float
    usage: CodeUsage

    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        return {
            "psnr": self.psnr,
            "code_usage": self.usage.share_used,
            "code_perplexity": self.usage.perplexity,
            "l1": self.l1,
        }


@torch.no_grad()
def score_tokenizer(model: TokenizerModel, images: ImageSet, *, batch_size: int = 64) -> TokenizerScores:
    """Encode and decode every image of the set, unaugmented."""
    device = next(model.parameters()).device
    total_psnr = total_l1 = 0.0
    counts_V = np.zeros(model.quantizer.codebook_size, np.int64)
    for start in trange(0, len(images), batch_size, desc="scoring the tokenizer", unit="batch", delay=2, leave=False):
        batch = images.images(np.arange(start, min(start + batch_size, len(images)))).to(device)
        codes = model.encode(batch)
        decoded = model.decode(codes)
        total_psnr += float(psnr(batch, decoded).sum())
        total_l1 += float((batch - decoded.clamp(-1, 1)).abs().mean(dim=(1, 2, 3)).sum())
        counts_V += np.bincount(codes.flatten().cpu().numpy(), minlength=len(counts_V))
    return TokenizerScores(total_psnr / len(images), total_l1 / len(images), CodeUsage(counts_V))
