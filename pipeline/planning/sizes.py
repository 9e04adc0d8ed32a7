"""Sizes of a recipe that leaves them open: resolution, tokenizer, codes, prior, dropout, from pictures and compute.

Rules, with the compute of a stage in FLOPs of training (three forward passes):

- Resolution: the highest at which the narrowest network still sees 20,000 images, times the square root of
  (compute / 1.6e13): in trials on pictograms 64 pixels with a narrow network beat 32 with a wide one at equal compute,
  also after enlarging. At most that of the pictures, since more would only enlarge them.
- Tokenizer: the widest network that still sees 50,000 images times the same root. Width and images then grow together,
  as model and data should (Hoffmann et al. 2022, arXiv:2203.15556, section 3). docs/RESULTS.md has the trials.
- Networks: transformers over patches, one for each code. In one trial on CIFAR-10, 150 seconds of one core each, the
  Frechet distance of 2,000 reconstructions (lite0) was 208 beside 258 of convolutions, at equal PSNR. In ten minutes of
  a faster core width 128 with 2 + 6 blocks reached 26.6 dB, 96 with 1 + 4 blocks 26.3, 192 with 2 + 4 blocks 26.5.
- Encoding must not take much of the budget: a network whose encoder would is too wide.
- Prior: the largest with at least ten codes of training per weight. The optimum for text is twenty (the same paper);
  short trainings on images gain from larger models.
- Passes over the pictures: up to 40. The value of repeated data decays, and is gone by about 40 passes (Muennighoff et
  al. 2023, arXiv:2305.16264, section 5); dropout rises with them.
- Learning rate of the prior: 3e-3 up to a width of 128, then falling with the root of the width.
- Codebook: 256 to 16,384 vectors of width 8 by moving averages: at least 50 latents of the pictures for each code, and
  more than 1,024 codes only where compute is large. In a trial of 376 steps on pictograms they reconstructed 0.5 dB
  better than FSQ with as many codes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from foundation.codes.spec import CodeSpec
from foundation.images.config import Preprocess
from pipeline.planning.measure import flops
from pipeline.planning.times import Counts
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import ViTNetworks
from stage1_tokenizer.quantizers.config import VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig

MOST_PASSES = 40
_SEEN_AT_LEAST, _SEEN, _AT_FLOPS = 20_000, 50_000, 1.6e13
_CODES_PER_WEIGHT = 10
_LATENTS_PER_CODE = 50
_MUCH_LARGER = 1.15
"""pictures may be enlarged this much"""
_RESOLUTIONS = ((32, 4), (64, 8), (128, 8), (256, 16))
"""side and stride: 8 x 8 codes up to 64 pixels, 16 x 16 above"""
_WIDTHS, _HEAD_WIDTH, _WIDE = (64, 96, 128, 192, 256, 384), 32, 128
_CODEBOOKS = ((256, 0.0), (1024, 0.0), (4096, 1e15), (16_384, 1e18))
"""codes, and FLOPs of the tokenizer's training from which on they pay"""
_PRIORS = ((2, 4, 64), (3, 4, 96), (4, 4, 128), (5, 4, 192), (6, 4, 256), (8, 6, 384), (10, 8, 512), (12, 12, 768))
"""blocks, heads and width"""
_BATCHES, _STEPS = (16, 32, 64, 128, 256), {"tokenizer": 1500, "prior": 1500}
_PRIOR_RATE, _UP_TO_WIDTH = 3e-3, 128
_DROPOUTS = ((30, 0.3), (12, 0.2), (4, 0.1))
"""passes over the pictures, and the dropout from there on"""


@dataclass(frozen=True)
class TokenizerSizes:
    """A tokenizer's resolution and architecture.

    Attributes:
        side: of the images, in pixels.
        model: the architecture.
        flops: of a forward pass of one image.
    """

    side: int
    model: TokenizerConfig
    flops: float


def choose_tokenizer(
    budget_flops: float,
    counts: Counts,
    n_channels: int,
    side: int | None,
    *,
    fixed: bool = False,
    most_flops: float = math.inf,
) -> TokenizerSizes:
    """The tokenizer for a compute budget.

    Args:
        budget_flops: of its whole training.
        counts: of the pictures.
        n_channels: of an image.
        side: of the pictures, the shorter one in pixels, as they usually are; None sets no limit.
        fixed: whether ``side`` is the resolution, a multiple of 8.
        most_flops: of encoder and decoder for one image.
    """
    rungs = [each for each in _RESOLUTIONS if side is None or each[0] <= _MUCH_LARGER * side] or [_RESOLUTIONS[0]]
    if fixed and side is not None:
        rungs = [(side, rungs[-1][1])]
    growth = math.sqrt(budget_flops / _AT_FLOPS)
    best = next(_tokenizers(rungs[0], counts, n_channels, budget_flops))
    for rung in rungs:
        narrowest = next(_tokenizers(rung, counts, n_channels, budget_flops))
        if budget_flops < 3 * narrowest.flops * _SEEN_AT_LEAST * growth or narrowest.flops > most_flops:
            break
        best = narrowest
        for wider in _tokenizers(rung, counts, n_channels, budget_flops):
            if budget_flops < 3 * wider.flops * _SEEN * growth or wider.flops > most_flops:
                break
            best = wider
    return best


def _tokenizers(
    rung: tuple[int, int], counts: Counts, n_channels: int, budget_flops: float
) -> Iterator[TokenizerSizes]:
    """Tokenizers of one resolution, the narrowest first."""
    side, stride = rung
    quantizer = VQConfig(codebook_size=_codebook_size(counts.train * (side // stride) ** 2, budget_flops), width=8)
    for width in _WIDTHS:
        networks = ViTNetworks(
            patch_size=stride,
            width=width,
            encoder_layers=1 if width < _WIDE else 2,
            decoder_layers=4 if width < _WIDE else 6,
            n_heads=width // _HEAD_WIDTH,
            mlp_ratio=2,
        )
        model = TokenizerConfig(networks=networks, latent_channels=32 if width < _WIDE else 64, quantizer=quantizer)
        yield TokenizerSizes(side, model, tokenizer_flops(model, n_channels, side))


def _codebook_size(n_latents: int, budget_flops: float) -> int:
    fits = [size for size, pays in _CODEBOOKS if n_latents >= _LATENTS_PER_CODE * size and budget_flops >= pays]
    return max(fits, default=_CODEBOOKS[0][0])


def choose_prior(
    budget_flops: float, counts: Counts, n_views: int, spec: CodeSpec, open_one: PriorConfig
) -> PriorConfig:
    """The prior for a compute budget: its size, rotary base and dropout.

    Args:
        budget_flops: of its whole training.
        counts: of the pictures.
        n_views: stored views of a picture.
        spec: of the codes.
        open_one: of the recipe; all other settings are kept.
    """
    chosen, n_images = None, counts.train * n_views
    for n_layers, n_heads, width in _PRIORS:
        config = dataclasses.replace(open_one, n_layers=n_layers, n_heads=n_heads, d_model=width, size=None, d_ff=None)
        cost, n_weights = prior_cost(config, spec)
        seen = min(budget_flops / (3 * cost), MOST_PASSES * n_images)
        if chosen is None or seen * spec.n_codes >= _CODES_PER_WEIGHT * n_weights:
            chosen = dataclasses.replace(config, dropout=dropout_for(seen / max(1, n_images)))
    assert chosen is not None
    return chosen


def batch_for(stage: str, images_seen: float) -> int:
    """Batch size of a stage that sees ``images_seen`` images over all its steps: about as many steps as serve it."""
    return min(_BATCHES, key=lambda batch: abs(math.log(max(images_seen, 1.0) / _STEPS[stage] / batch)))


def prior_learning_rate(width: int) -> float:
    """Peak learning rate of AdamW for a prior of this width."""
    return round(_PRIOR_RATE * math.sqrt(min(1.0, _UP_TO_WIDTH / width)), 5)


def dropout_for(n_passes: float) -> float:
    """Dropout of a prior that sees its pictures so often."""
    return next((dropout for passes, dropout in _DROPOUTS if n_passes >= passes), 0.0)


@functools.cache
def tokenizer_flops(model: TokenizerConfig, n_channels: int, side: int) -> float:
    """FLOPs of encoder and decoder for one image."""
    preprocess = Preprocess(height=side, width=side, mode="channels", channels=n_channels)
    tokenizer, grid = TokenizerModel(model, preprocess), side // model.stride
    images, latents = (
        torch.zeros(1, preprocess.n_channels, side, side),
        torch.zeros(1, model.latent_channels, grid, grid),
    )
    return flops(lambda: (tokenizer.encoder(images), tokenizer.decoder(latents)))


def prior_cost(config: PriorConfig, spec: CodeSpec) -> tuple[float, int]:
    """FLOPs of a forward pass over the codes of one image; weights in the blocks."""
    width, n_steps = config.shape.d_model, spec.n_codes
    outputs = max(slot.codebook_size for slot in spec.slots)
    if spec.latents:
        depth = spec.levels[0].depth
        n_steps, outputs = n_steps // depth, config.mixtures * (1 + 2 * depth)
    n_block = config.shape.n_layers * (4 * width**2 + 3 * width * config.feed_forward_width)
    attention = 4 * config.shape.n_layers * n_steps**2 * width
    return 2.0 * n_steps * (n_block + width * outputs) + attention, n_block
