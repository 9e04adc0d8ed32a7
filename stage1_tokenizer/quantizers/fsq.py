"""Finite scalar quantization: every channel is bounded and rounded; the codebook is their product, nothing to learn.

Channels of a randomly initialised network are strongly correlated, so that rounding channel by channel leaves most of
the implicit codebook unused: training starts from whitened latents.

Sources: Mentzer, Minnen, Agustsson and Tschannen 2023, arXiv:2309.15505, section 3.1 and appendix A.1; whitening: Bell
and Sejnowski 1997, "The independent components of natural scenes are edge filters", section 2 (ZCA, the whitening that
moves the data least); even levels for normal latents: iFSQ, arXiv:2601.17124.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from foundation.hardware import has_float64, to_float64
from foundation.training.parallel import all_reduce_mean, all_reduce_sum, broadcast, global_mean
from stage1_tokenizer.quantizers.base import Quantized, Quantizer, to_rows, without_autocast
from stage1_tokenizer.quantizers.config import FSQConfig

_SMALLEST_SHARE = 1e-6  # of the largest variance: a direction that hardly varies is not blown up without bound
_EPSILON = 1e-3  # keeps the bounded value strictly inside the outermost rounding cells
_EXACT_IN_FLOAT32 = 1 << 24
_EVEN_DEVIATION = math.pi / (2 * math.sqrt(3))  # of atanh(u) for u uniform in (-1, 1): fills the levels evenly
_NORMAL_SLOPE = 1.702 / 2  # tanh(0.851 x) differs from 2 Phi(x) - 1, which makes a normal x uniform, by at most 0.019
_KEPT = 0.99  # share of the running moments at each step
_SMALLEST_VARIANCE = 1e-10


class FSQ(Quantizer):
    """Rounds channel c to one of ``levels[c]`` equally spaced values in [-1, 1].

    A code is the mixed-radix number of the channels' level indices, the first channel being the fastest digit.
    """

    config: FSQConfig
    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config)
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        if config.unit_variance:
            self.register_buffer("mean", torch.zeros(self.width))
            self.register_buffer("variance", torch.ones(self.width))

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize; the gradient of the rounding is one, that of the bounding is exact, running moments are constants.

        With ``unit_variance``, in training mode, the moments of the latents stay in memory for ``update``.
        """
        with without_autocast(latents_BCHW):
            columns = self._columns(latents_BCHW.device)
            self._remember(latents_BCHW)
            quantized, rounded = _RoundToLevels.apply(self._scaled(latents_BCHW.float()), columns)
            losses = {}
            if self.config.evenness > 0:
                distance = moment_distance(to_rows(quantized), self.config.levels)
                losses["evenness"] = self.config.evenness * distance
            return Quantized(quantized, _combine(rounded, columns), losses)

    @torch.no_grad()
    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents => (B, H, W) codes."""
        with without_autocast(latents_BCHW):
            columns = self._columns(latents_BCHW.device)
            return _combine(_round(self._scaled(latents_BCHW.float()), columns)[1], columns)

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W) codes => (B, C, H, W) values in [-1, 1]."""
        columns = self._columns(codes_BHW.device)
        levels_C11 = (columns.highest - columns.lowest + 1).to(torch.int64)
        digits_BCHW = codes_BHW.to(torch.int64).unsqueeze(1) // columns.radix.to(torch.int64) % levels_C11
        return (digits_BCHW + columns.lowest) / columns.steps

    def projection_start(self, latents_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Uncorrelated channels, each spread over all its levels."""
        if self.config.initial == "random":
            return None
        with without_autocast(latents_BCHW):
            deviation = 1.0 if self.config.unit_variance else _EVEN_DEVIATION
            matrix_CC, offset_C = whitening(to_rows(latents_BCHW.float()), deviation)
            return matrix_CC, offset_C - self._columns(latents_BCHW.device).shift.flatten()

    @torch.no_grad()
    def initialize(self, latents_BCHW: torch.Tensor, generator: torch.Generator) -> None:
        """With ``unit_variance``: start from the moments of the first batch of all processes."""
        if self.config.unit_variance:
            self._follow(*_moments(latents_BCHW), kept=0.0)

    @torch.no_grad()
    def update(self, step: int, generator: torch.Generator) -> None:
        """Move the running moments by what ``forward`` saw, of all processes."""
        if self._seen is not None:
            self._follow(*self._seen, kept=_KEPT)
            self.forget()

    def forget(self) -> None:
        """Drop the moments of a step that was not taken."""
        self._seen = None

    def _follow(self, mean_C: torch.Tensor, square_C: torch.Tensor, kept: float) -> None:
        mean_C, square_C = all_reduce_mean(mean_C), all_reduce_mean(square_C)
        self.mean.lerp_(mean_C.to(self.mean), 1 - kept)
        self.variance.lerp_((square_C - mean_C.square()).to(self.variance), 1 - kept)

    def _remember(self, latents_BCHW: torch.Tensor) -> None:
        if self.config.unit_variance and self.training:
            self._seen = _moments(latents_BCHW.detach())

    def _scaled(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Latents as the bounding takes them."""
        if not self.config.unit_variance:
            return latents_BCHW
        mean_C11, variance_C11 = (each.view(-1, 1, 1) for each in (self.mean, self.variance))
        return (latents_BCHW - mean_C11) * (_NORMAL_SLOPE * variance_C11.clamp_min(_SMALLEST_VARIANCE).rsqrt())

    def _columns(self, device: torch.device) -> _Columns:
        return _columns(self.config.levels, device, self.config.unit_variance)


def _moments(latents_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and mean square of each channel, (C,) float64 where the device has it."""
    rows = to_rows(latents_BCHW.float())
    rows = rows.double() if has_float64(rows.device) else rows  # to send them elsewhere would be to wait
    return rows.mean(0), rows.square().mean(0)


@torch.no_grad()
def whitening(rows_NC: torch.Tensor, deviation: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map ``rows @ matrix.T + offset`` that whitens the rows of all processes together.

    Args:
        rows_NC: (N, C) float32 latents of this process.
        deviation: standard deviation of each channel afterwards.

    Returns:
        matrix (C, C) and offset (C,), float32, the same on every process.
    """
    rows = to_float64(rows_NC)
    count = all_reduce_sum(rows.new_tensor(float(len(rows))))
    mean_C = all_reduce_sum(rows.sum(0)) / count
    covariance_CC = all_reduce_sum((rows - mean_C).T @ (rows - mean_C)) / count
    variances_C, directions_CC = torch.linalg.eigh(covariance_CC)
    floor = (variances_C.amax() * _SMALLEST_SHARE).clamp_min(1e-12)
    matrix_CC = deviation * (directions_CC * variances_C.clamp_min(floor).rsqrt()) @ directions_CC.T
    broadcast(matrix_CC)  # the sums are equal already; a decomposition might not be on unlike machines
    offset_C = -(matrix_CC @ mean_C)
    return matrix_CC.float().to(rows_NC.device), offset_C.float().to(rows_NC.device)


def moment_distance(values_NC: torch.Tensor, levels: tuple[int, ...]) -> torch.Tensor:
    """Moment regulariser: distance of means and covariances from their values under even use of codes; 0 or more.

    Each channel is brought to mean 0 and variance 1 under even use; the result is the mean square of the channels'
    means plus that of the differences of their second moments from the identity matrix. The off-diagonal part is the
    covariance term of Bardes, Ponce and LeCun 2021, arXiv:2105.04906, equation 3.

    Args:
        values_NC: (N, C) quantized values, multiples of 1 / (levels[c] // 2); in training of all processes.
        levels: of each channel.
    """
    columns = _columns(levels, values_NC.device)
    scaled_NC = (values_NC - columns.mean.flatten()) / columns.deviation.flatten()
    moments_CC = global_mean(scaled_NC.T @ scaled_NC / len(values_NC))
    identity_CC = torch.eye(len(levels), device=values_NC.device)
    return global_mean(scaled_NC.mean(0)).square().mean() + (moments_CC - identity_CC).square().mean()


@dataclass(frozen=True)
class _Columns:
    """Per-channel numbers as (C, 1, 1) float32; ``radix`` in int64 where float32 cannot hold every code.

    ``mean`` and ``deviation`` are moments of the quantized values under even use of all levels.
    """

    half: torch.Tensor
    offset: torch.Tensor
    shift: torch.Tensor
    steps: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    radix: torch.Tensor


@functools.lru_cache(maxsize=64)
def _columns(levels: tuple[int, ...], device: torch.device, even: bool = False) -> _Columns:
    """Outside the module, so that no table can be lost or changed when a model is loaded, cast or moved.

    With ``even`` all levels take equal parts of the bounded range, and 0 is its middle; in the paper the outermost
    levels take half a part.
    """
    half = [(level if even else level - 1) * (1 - _EPSILON) / 2 for level in levels]
    offset = [0.5 if level % 2 == 0 else 0.0 for level in levels]
    # The paper's code has tan here; atanh would put z = 0 exactly at the middle, but is undefined at L = 2.
    shift = [0.0 if even else math.tan(o / h) for o, h in zip(offset, half, strict=True)]
    middle = [level // 2 for level in levels]
    radix_type = torch.float32 if math.prod(levels) <= _EXACT_IN_FLOAT32 else torch.int64

    def column(values: list[float] | list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)

    with torch.inference_mode(False):  # a table made in inference mode could not be used in training later
        return _Columns(
            half=column(half),
            offset=column(offset),
            shift=column(shift),
            steps=column(middle),
            lowest=column([-each for each in middle]),
            highest=column([level - 1 - each for level, each in zip(levels, middle, strict=True)]),
            mean=column([((level - 1) / 2 - each) / each for level, each in zip(levels, middle, strict=True)]),
            deviation=column([math.sqrt((n**2 - 1) / 12) / each for n, each in zip(levels, middle, strict=True)]),
            radix=column([math.prod(levels[:i]) for i in range(len(levels))], radix_type),
        )


class _RoundToLevels(torch.autograd.Function):
    """Forward: bound and round. Backward: the exact derivative of the bound; that of the rounding counts as one."""

    @staticmethod
    def forward(ctx: Any, latents_BCHW: torch.Tensor, columns: _Columns) -> tuple[torch.Tensor, torch.Tensor]:
        squashed_BCHW, rounded_BCHW = _round(latents_BCHW, columns)
        ctx.save_for_backward(squashed_BCHW)
        ctx.slope = columns.half / columns.steps
        ctx.mark_non_differentiable(rounded_BCHW)
        return rounded_BCHW / columns.steps, rounded_BCHW

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (squashed_BCHW,) = ctx.saved_tensors
        slopes_BCHW = squashed_BCHW.square().neg_().add_(1).mul_(ctx.slope)
        return slopes_BCHW.mul_(gradients[0]), None


def _round(latents_BCHW: torch.Tensor, columns: _Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents => (tanh of the shifted latents, whole numbers from ``lowest`` to ``highest``), both float32."""
    squashed = (latents_BCHW + columns.shift).tanh_()
    rounded = torch.addcmul(-columns.offset, squashed, columns.half).round_()
    return squashed, rounded.clamp_(columns.lowest, columns.highest)


def _combine(rounded_BCHW: torch.Tensor, columns: _Columns) -> torch.Tensor:
    """Whole numbers of each channel => codes, int64; the sums are exact in the type of ``radix``. NaN is code 0."""
    digits_BCHW, radix = rounded_BCHW - columns.lowest, columns.radix
    if radix.is_floating_point():
        return (digits_BCHW * radix).sum(1).nan_to_num_().to(torch.int64)
    codes_BHW = (digits_BCHW.nan_to_num().to(radix.dtype) * radix).sum(1)
    return codes_BHW.masked_fill_(digits_BCHW.isnan().any(1), 0)
