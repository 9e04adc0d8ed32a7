"""Interpolation between two draws, and between two images in latent space."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch

from foundation.errors import ConfigError, DataError
from pipeline.generation.drawing import SampleRequest, draw
from pipeline.generation.inputs import read_images
from pipeline.generation.options import DrawOptions
from pipeline.generation.outputs import GeneratorOutput
from pipeline.generation.parts import GeneratorParts, Label, output_of
from pipeline.generation.requests import DrawSettings, require_count, whole
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decoding.decode import stream_uniforms

_MAX_STEPS = 10_000
_TINY = 2.0**-60


@torch.no_grad()
def interpolate(
    parts: GeneratorParts,
    first: Any,
    last: Any,
    class_label: Label | None = None,
    *,
    steps: int = 8,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Images between two seeds or two images, both ends included.

    Between two seeds each picture is a draw from the prior; the ends are what the seeds give. The random numbers of
    both draws, as normal quantiles, are interpolated on a circle, so that they are distributed as fresh ones at every
    step (a straight line would draw them to the middle, to the likeliest codes). What changes, changes code by code.

    Between two images the encoder's features, of which codes are the roundings, are interpolated on a straight line and
    quantized: codes have no order, so that nothing lies between two of them. No prior has a part in it.

    Args:
        parts: the generator.
        first, last: two seeds, or two images: Pillow images or (1, C, Y, X) tensors in [-1, 1].
        class_label: of all draws; None for no class, and between images.
        steps: number of images, 2 or more.
        options: see ``DrawOptions``; ``seed``, ``generator`` and ``best_of`` are refused.

    Raises:
        DataError, ConfigError: as a call; ends of two kinds.
    """
    settings = parts.settings(options)
    require_count("steps", steps)
    n = whole(steps)
    if not 2 <= n <= _MAX_STEPS:
        raise ConfigError("cannot be used", field="steps", found=n, expected=f"2 to {_MAX_STEPS}: both ends count")
    for name in ("seed", "generator", "best_of"):
        if options.get(name) is not None:
            found = repr(options.get(name))[:200]
            raise ConfigError("has no place between two images", field=name, found=found, fix="leave it out")
    parts.require_memory(n, settings)
    seeds = [whole(first), whole(last)]
    if min(seeds) >= 0:
        return _between_seeds(parts, seeds, class_label, n, settings)
    if class_label is not None:
        raise ConfigError("has no part between two images", field="class_label", found=repr(class_label)[:200])
    pair = [read_images(each, parts.spec, parts.device) for each in (first, last)]
    counts = tuple(len(each) for each in pair)
    if counts != (1, 1):
        raise DataError("are several", field="images", found=counts, expected="one at each end")
    features_SCHW = features_between(parts.tokenizer, pair[0][0], pair[1][0], torch.linspace(0, 1, n))
    codes_ST = parts.tokenizer.bottleneck.encode(features_SCHW).flatten(1)
    return output_of(parts, codes_ST, [parts.prior.null_class] * n, [], settings)


def _between_seeds(
    parts: GeneratorParts, seeds: list[int], class_label: Label | None, n: int, settings: DrawSettings
) -> GeneratorOutput:
    labels = parts.label_ids(class_label) * n
    if len(labels) != n:
        raise DataError("are several", field="class_label", found=len(labels) // n, expected="one class, or None")
    parts.require_labels(labels)
    first_T, last_T = stream_uniforms(seeds, parts.spec.n_codes)
    uniforms_ST = uniforms_between(first_T, last_T, n)
    request = SampleRequest(labels=labels, seeds=[], sampling=settings.sampling, uniforms_BT=uniforms_ST)
    return output_of(parts, draw(parts.prior, request, show_progress=parts.shows_progress), labels, seeds, settings)


def uniforms_between(first_T: torch.Tensor, last_T: torch.Tensor, n: int) -> torch.Tensor:
    """Uniform numbers from one sequence to another, both ends included: (n, T) float64 in [0, 1).

    If the ends are independent and uniform, so is every step. Between equal sequences all steps are equal.
    """
    if torch.equal(first_T, last_T):
        return first_T.expand(n, -1).clone()
    angles_S1 = (torch.arange(n, dtype=torch.float64) * (math.pi / 2 / (n - 1))).unsqueeze(1)
    first, last = (torch.special.ndtri(each.clamp(_TINY, 1 - 2.0**-53)) for each in (first_T, last_T))
    rotated_ST = torch.special.ndtr(torch.cos(angles_S1) * first + torch.sin(angles_S1) * last)
    uniforms_ST = rotated_ST.clamp_max(1 - 2.0**-53)
    uniforms_ST[0], uniforms_ST[-1] = first_T, last_T
    return uniforms_ST


@torch.no_grad()
def features_between(
    tokenizer: TokenizerModel, first_CYX: torch.Tensor, last_CYX: torch.Tensor, shares_S: torch.Tensor
) -> torch.Tensor:
    """Points on the straight line between the encoder's features of two images, (S, channels, H, W) float32.

    The latents of one grid are an affine map of the features, so that they lie on a line too.

    Args:
        tokenizer: in evaluation mode.
        first_CYX, last_CYX: images in [-1, 1] of equal shape.
        shares_S: how far to go, 0 for the first image, 1 for the last.

    Raises:
        DataError: images of different shapes.
    """
    if first_CYX.shape != last_CYX.shape:
        found, expected = tuple(last_CYX.shape), tuple(first_CYX.shape)
        raise DataError("the two images differ in shape", field="images", found=found, expected=expected)
    start, end = tokenizer.features(torch.stack([first_CYX, last_CYX])).float()
    return torch.lerp(start[None], end[None], shares_S.to(start).view(-1, 1, 1, 1))


@torch.no_grad()
def images_between(
    tokenizer: TokenizerModel, first_CYX: torch.Tensor, last_CYX: torch.Tensor, shares_S: torch.Tensor
) -> torch.Tensor:
    """Decode points between two images, quantized by a discrete tokenizer; see ``features_between``.

    Returns:
        (S, C, Y, X) images, nominally in [-1, 1] but not clamped.
    """
    features_SCHW = features_between(tokenizer, first_CYX, last_CYX, shares_S)
    latents_BCHW, _ = tokenizer.bottleneck(features_SCHW.to(next(tokenizer.decoder.parameters()).dtype))
    images: torch.Tensor = tokenizer.decoder(latents_BCHW).float()
    return images
