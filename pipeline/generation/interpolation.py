"""Interpolation between two samples of the prior, and between two images in latent space."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch

from foundation.errors import ConfigError, DataError
from pipeline.generation.base import Aspect, BaseGenerator, Label, output_of
from pipeline.generation.drawing import SampleRequest, draw
from pipeline.generation.inputs import grid_of, read_images
from pipeline.generation.options import SETTINGS, DrawOptions
from pipeline.generation.outputs import GeneratorOutput
from pipeline.generation.requests import DrawSettings, shown, whole
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decoding.decode import stream_uniforms

_MAX_STEPS = 10_000
_TINY = 2.0**-60


@torch.no_grad()
def interpolate(
    pipe: BaseGenerator,
    first: Any,
    last: Any,
    class_label: Label | None = None,
    *,
    steps: int = 8,
    aspect: Aspect = None,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Images between two seeds or two images, both ends included.

    Between two seeds each image is a sample of the prior; the ends are what the seeds give. The random numbers of both
    samples, as normal quantiles, are interpolated on a circle, so that they are distributed as fresh ones at every step
    (a straight line would pull them to the middle, to the likeliest codes). The images change code by code.

    Between two images the encoder's features, of which codes are the roundings, are interpolated on a straight line and
    quantized: codes have no order, so that nothing lies between two of them. The prior is not used.

    Args:
        pipe: the generator itself.
        first, last: two seeds, or two images: Pillow images or (1, C, Y, X) tensors in [-1, 1].
        class_label: of all samples; None for no class, and between images.
        steps: number of images, 2 to 10,000.
        aspect: as of a call, between seeds; images take the shape of the first.
        options: see ``DrawOptions``; ``seed``, ``generator`` and ``best_of`` are refused.

    Returns:
        ``steps`` images in order.

    Raises:
        DataError, ConfigError: as a call; ends of two kinds.
    """
    settings = pipe.settings(options)
    n, expected = whole(steps), f"2 to {_MAX_STEPS}: both ends count"
    ConfigError.unless(2 <= n <= _MAX_STEPS, "cannot be used", field="steps", found=shown(steps), expected=expected)
    for name in ("seed", "generator", "best_of"):
        missing, problem = options.get(name) is None, "cannot be used between two images"
        ConfigError.unless(missing, problem, field=name, found=shown(options.get(name)), fix="leave it out")
    pipe.require_memory(n, settings)
    seeds = [whole(first), whole(last)]
    if min(seeds) >= 0:
        return _between_seeds(pipe, seeds, class_label, n, settings, pipe.grid_of(aspect))
    problem = "has no effect between two images"
    own = {"class_label": class_label, "aspect": aspect, **{name: options.get(name) for name in SETTINGS}}
    for name, value in own.items():
        ConfigError.unless(value is None, problem, field=name, found=shown(value), fix="leave it out")
    grid = grid_of(first, pipe.spec)
    pair = [read_images(each, pipe.spec.of_grid(grid), pipe.device) for each in (first, last)]
    counts = tuple(len(each) for each in pair)
    DataError.unless(counts == (1, 1), "are several", field="images", found=counts, expected="one at each end")
    features_SCHW = features_between(pipe.tokenizer, pair[0][0], pair[1][0], torch.linspace(0, 1, n))
    codes_ST = pipe.tokenizer.bottleneck.encode(features_SCHW).flatten(1)
    codes = pipe.spec.grid(codes_ST, grid)
    return output_of(pipe, codes, [pipe.prior.null_class] * n, [], settings)


def _between_seeds(
    pipe: BaseGenerator, seeds: list[int], class_label: Label | None, n: int, settings: DrawSettings, grid: int
) -> GeneratorOutput:
    labels = pipe.label_ids(class_label) * n
    pipe.require_guided(labels, settings)
    found, expected = len(labels) // n, "one class, or None"
    DataError.unless(found == 1, "are several", field="class_label", found=found, expected=expected)
    first_T, last_T = stream_uniforms(seeds, pipe.spec.n_codes)
    uniforms_ST = uniforms_between(first_T, last_T, n)
    request = SampleRequest(labels=labels, seeds=[], sampling=settings.sampling, uniforms_BT=uniforms_ST, grid=grid)
    codes_ST = draw(pipe.prior, request, show_progress=pipe.shows_progress)
    return output_of(pipe, pipe.spec.grid(codes_ST, grid), labels, seeds, settings)


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
    found, expected = tuple(last_CYX.shape), tuple(first_CYX.shape)
    same = found == expected
    DataError.unless(same, "the two images differ in shape", field="images", found=found, expected=expected)
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
    return tokenizer.decoder(latents_BCHW).float()  # type: ignore[no-any-return]
