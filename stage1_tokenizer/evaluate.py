"""Reconstruction quality and code usage over a set of images: PSNR, SSIM, L1, LPIPS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from foundation.codes.usage import CodeUsage, count_codes_by_slot, summarize
from foundation.config import require
from foundation.images.buckets import batches_of_one_shape
from foundation.images.image_set import ImageSet
from stage1_tokenizer.image_metrics import psnr, ssim
from stage1_tokenizer.tokenizer import TokenizerModel

PairScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PairWatcher = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class TokenizerScores:
    """Averages over a whole set.

    Attributes:
        n_images: size of the set.
        means: ``psnr`` (dB), ``ssim`` (at most 1), ``l1`` (of values in [-1, 1]) and, where it was asked for,
            ``lpips``: means over images.
        usages: which codes occurred, how often: one for each codebook. Empty for a continuous tokenizer.
    """

    n_images: int
    means: dict[str, float]
    usages: tuple[CodeUsage, ...]

    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        rest = {name: value for name, value in self.means.items() if name != "psnr"}
        if not self.usages:
            return {"psnr": self.means["psnr"], **rest}
        total = summarize(list(self.usages))
        several = self.usages if len(self.usages) > 1 else ()
        single = {
            name: value
            for i, each in enumerate(several)
            for name, value in (
                (f"code_usage_{i}", each.share_used),
                (f"code_perplexity_{i}", each.perplexity),
                (f"code_usage_possible_{i}", _possible((each,))),
            )
        }
        return {
            "psnr": self.means["psnr"],
            "code_usage": total.share_used,
            "code_perplexity": total.perplexity,
            **rest,
            "code_usage_possible": _possible(self.usages),
            **single,
        }


@torch.no_grad()
def score_tokenizer(
    model: TokenizerModel,
    images: ImageSet,
    *,
    batch_size: int = 64,
    lpips: PairScore | None = None,
    watch: PairWatcher | None = None,
) -> TokenizerScores:
    """Encode and decode every image of the set, unaugmented, with dropout off. Memory does not grow with the set.

    Args:
        model: discrete, or continuous (then without code usage).
        images: the set.
        batch_size: images at a time.
        lpips: ``lpips(images_BCYX, reconstructions_BCYX) -> (B,)``, on the model's device.
        watch: called with each batch of images and reconstructions, both in [-1, 1]; batches come in a fixed random
            order, since sets are often sorted by class.

    Raises:
        ConfigError: a batch size below 1.
    """
    require(batch_size > 0, "batch_size", batch_size, "a positive number of images")
    device = next(model.parameters()).device
    totals: dict[str, float] = defaultdict(float)
    usages: tuple[CodeUsage, ...] = ()
    order = np.random.default_rng(0).permutation(len(images))  # ``watch`` sees a sample of the whole set
    was_training = model.training
    model.eval()
    try:
        batches = list(batches_of_one_shape(images.buckets, order, batch_size))
        for rows in tqdm(batches, desc="scoring the tokenizer", unit="batch", delay=2, leave=False):
            batch = images.images(rows).to(device)
            codes = model.encode(batch)
            decoded = model.decode(codes).clamp(-1, 1)
            for name, values_B in _scores(batch, decoded, lpips).items():
                totals[name] += float(values_B.cpu().double().sum())
            if model.is_discrete:
                found = count_codes_by_slot(codes.flatten(1).cpu().numpy(), model.layout)
                usages = tuple(a + b for a, b in zip(usages, found, strict=True)) if usages else tuple(found)
            if watch is not None:
                watch(batch, decoded)
    finally:
        model.train(was_training)
    return TokenizerScores(len(images), {name: total / len(images) for name, total in totals.items()}, usages)


def _scores(images_BCYX: torch.Tensor, decoded_BCYX: torch.Tensor, lpips: PairScore | None) -> dict[str, torch.Tensor]:
    """Scores of each image, (B,)."""
    scores = {
        "psnr": psnr(images_BCYX, decoded_BCYX),
        "ssim": ssim(images_BCYX, decoded_BCYX),
        "l1": (images_BCYX - decoded_BCYX).abs().flatten(1).mean(1),
    }
    if lpips is not None:
        scores["lpips"] = lpips(images_BCYX, decoded_BCYX)
    return scores


def _possible(usages: tuple[CodeUsage, ...]) -> float:
    """Share of the codebooks that as many uniformly distributed codes would use, on average."""
    sizes = np.array([len(usage.counts_V) for usage in usages], float)
    n_codes = np.array([usage.counts_V.sum() for usage in usages], float)
    return float((sizes * -np.expm1(n_codes * np.log1p(-1 / np.maximum(sizes, 2)))).sum() / sizes.sum())
