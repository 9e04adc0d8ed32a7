"""Reconstruction quality and code usage over a set of images: PSNR, SSIM, L1, LPIPS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import trange

from foundation.codes.usage import CodeUsage, count_codes_by_slot, summarize
from foundation.config import require
from foundation.images.config import Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.preview import visible
from stage1_tokenizer.image_metrics import channel_psnr, premultiplied, psnr, ssim
from stage1_tokenizer.tokenizer import TokenizerModel

PairScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PairWatcher = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class TokenizerScores:
    """Averages over a whole set.

    Attributes:
        n_images: size of the set.
        means: ``psnr`` (dB), ``ssim`` (at most 1), ``l1`` (of values in [-1, 1]) and, where it was asked for,
            ``lpips``: means over images. Over all channels; in mode RGBA colours are multiplied by opacity, and there
            are ``psnr_colour`` and ``psnr_alpha``; of more than 3 channels there is ``psnr_0`` and so on for each.
            ``lpips`` is of the channels that are shown.
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
        for start in trange(
            0, len(images), batch_size, desc="scoring the tokenizer", unit="batch", delay=2, leave=False
        ):
            batch = images.images(order[start : start + batch_size]).to(device)
            codes = model.encode(batch)
            decoded = model.decode(codes).clamp(-1, 1)
            for name, values_B in scores_of(batch, decoded, model.preprocess, lpips).items():
                totals[name] += float(values_B.cpu().double().sum())
            if model.is_discrete:
                found = count_codes_by_slot(codes.flatten(1).cpu().numpy(), model.layout)
                usages = tuple(a + b for a, b in zip(usages, found, strict=True)) if usages else tuple(found)
            if watch is not None:
                watch(batch, decoded)
    finally:
        model.train(was_training)
    return TokenizerScores(len(images), {name: total / len(images) for name, total in totals.items()}, usages)


def scores_of(
    images_BCYX: torch.Tensor, decoded_BCYX: torch.Tensor, preprocess: Preprocess, lpips: PairScore | None = None
) -> dict[str, torch.Tensor]:
    """Scores of each image, (B,): see ``TokenizerScores.means``. Both arguments are in [-1, 1]."""
    pair = images_BCYX, decoded_BCYX
    if preprocess.mode == "RGBA":
        images_BCYX, decoded_BCYX = premultiplied(images_BCYX), premultiplied(decoded_BCYX)
    scores = {
        "psnr": psnr(images_BCYX, decoded_BCYX),
        "ssim": ssim(images_BCYX, decoded_BCYX),
        "l1": (images_BCYX - decoded_BCYX).abs().flatten(1).mean(1),
    }
    if preprocess.mode == "RGBA":
        scores["psnr_colour"] = psnr(images_BCYX[:, :3], decoded_BCYX[:, :3])
        scores["psnr_alpha"] = psnr(images_BCYX[:, 3:], decoded_BCYX[:, 3:])
    elif preprocess.n_channels > 3:
        each_BC = channel_psnr(images_BCYX, decoded_BCYX)
        scores |= {f"psnr_{i}": each_BC[:, i] for i in range(preprocess.n_channels)}
    if lpips is not None:
        scores["lpips"] = lpips(*(visible(each, preprocess) for each in pair))
    return scores


def _possible(usages: tuple[CodeUsage, ...]) -> float:
    """Share of the codebooks that as many uniformly distributed codes would use, on average."""
    sizes = np.array([len(usage.counts_V) for usage in usages], float)
    n_codes = np.array([usage.counts_V.sum() for usage in usages], float)
    return float((sizes * -np.expm1(n_codes * np.log1p(-1 / np.maximum(sizes, 2)))).sum() / sizes.sum())
