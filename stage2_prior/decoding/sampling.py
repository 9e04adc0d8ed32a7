"""From logits to codes: temperature, top-k, top-p, and a draw. Pure functions of tensors, each row by itself.

Classifier-free guidance: how far each code's distribution is pushed towards its class.

Source: Ho and Salimans 2022, arXiv:2207.12598, Eq. 6; the schedules name theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from foundation.config import require
from stage2_prior.decoding.filters import BELOW_ONE, DigitFilters, Filters, SortingFilters

MAX_GUIDANCE = 1000.0
MIN_TEMPERATURE = 1e-5
_BLOCK = 128  # codes
_SCHEDULES = ("constant", "linear", "power-cosine", "step")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How codes are drawn from the prior."""

    guidance_scale: float = 1.0
    """classifier-free guidance: 1 is the plain class-conditional distribution, 0 that of all classes together, larger
    follows the class more closely"""
    schedule: Literal["constant", "linear", "power-cosine", "step"] = "constant"
    """how guidance grows over the codes of an image: constant uses guidance_scale throughout; linear starts at 1 and
    ends at guidance_scale; power-cosine stays near 1 for longer, see schedule_power; step is 1 before schedule_start"""
    schedule_power: float = 1.0
    """power-cosine only: the strength at share x of the codes is (1 - cos(pi * x ** power)) / 2; larger begins later"""
    schedule_start: float = 0.18
    """step only: share of the codes, 0 to 1, that are drawn before guidance begins"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """shares of the codes between which guidance acts; outside it the scale is 1"""
    temperature: float = 1.0
    """divides the logits; 0 (and anything below 0.00001) always takes the likeliest code"""
    top_k: int | None = None
    """draw from the k likeliest codes only, and those tied with the last of them; null draws from all"""
    top_p: float | None = None
    """draw from the smallest set of codes with at least this total probability, and those tied with the last of them;
    null draws from all"""

    def __post_init__(self) -> None:
        scale, power, start = self.guidance_scale, self.schedule_power, self.schedule_start
        require(0 <= scale <= MAX_GUIDANCE, "guidance_scale", scale, f"a number from 0 to {MAX_GUIDANCE:g}")
        require(self.schedule in _SCHEDULES, "schedule", self.schedule, "one of " + ", ".join(_SCHEDULES))
        require(math.isfinite(power) and power > 0, "schedule_power", power, "a finite number above 0")
        require(0 <= start <= 1, "schedule_start", start, "a share from 0 to 1")
        interval = self.guidance_interval
        ordered = len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1
        require(ordered, "guidance_interval", interval, "two shares from 0 to 1, the first at most the last")
        hot = math.isfinite(self.temperature) and self.temperature >= 0
        require(hot, "temperature", self.temperature, "a finite number, 0 or more")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1, or null")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and up to 1, or null")


def filters_for(n_rows: int, n_codes: int, device: torch.device) -> Filters:
    """For up to ``n_rows`` rows of up to ``n_codes`` probabilities."""
    return SortingFilters(n_rows, n_codes) if device.type == "cpu" else DigitFilters(n_rows, n_codes, device)


def choose(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, sampling: SamplingConfig, filters: Filters | None = None
) -> torch.Tensor:
    """One code per row, (B,) int64, from finite logits and one uniform number per row in [0, 1), float64."""
    if sampling.temperature < MIN_TEMPERATURE:
        return logits_BV.argmax(1)
    return draw(probabilities(logits_BV, sampling, filters), uniforms_B)


def probabilities(logits_BV: torch.Tensor, sampling: SamplingConfig, filters: Filters | None = None) -> torch.Tensor:
    """Temperature, then top-k, then top-p.

    Args:
        logits_BV: finite.
        sampling: what to apply.
        filters: memory for B rows and at least V codes; None takes new.

    Returns:
        (B, V) float32 that sum to 1.
    """
    logits = logits_BV.float()
    if sampling.temperature < MIN_TEMPERATURE:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    if sampling.temperature != 1.0:
        logits = (logits - logits.amax(1, keepdim=True)).div_(sampling.temperature)
    chances = logits.softmax(1)
    if sampling.top_k is None and sampling.top_p is None:
        return chances
    filters = filters or filters_for(len(chances), chances.shape[1], chances.device)
    if sampling.top_k is not None:
        chances = filters.keep_top_k(chances, sampling.top_k)
    if sampling.top_p is not None:
        chances = filters.keep_top_p(chances, sampling.top_p)
    return chances.div_(chances.sum(1, keepdim=True))


def draw(chances_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF sampling: row b takes the code at which its cumulative probability passes its uniform number.

    The cumulative sum is taken over blocks of codes first, then within one block, in float64: each code's probability
    is met to about 1e-7 of itself.

    Args:
        chances_BV: (B, V) probabilities, float32; they need not sum to 1.
        uniforms_B: (B,) float64 in [0, 1), one per row, so that a row does not depend on its neighbours.

    Returns:
        (B,) int64 codes of positive probability.
    """
    n_rows, n_codes = chances_BV.shape
    if n_codes % _BLOCK:
        chances_BV = F.pad(chances_BV, (0, -n_codes % _BLOCK))
    blocks_BNK = chances_BV.view(n_rows, -1, _BLOCK)
    mass_BN = blocks_BNK.sum(2).double()
    ends_BN = mass_BN.cumsum(1)
    target_B1 = uniforms_B.clamp_max(BELOW_ONE).unsqueeze(1) * ends_BN[:, -1:]
    block_B1 = torch.searchsorted(ends_BN, target_B1, right=True)
    past_B1 = 1 - (ends_BN.gather(1, block_B1) - target_B1) / mass_BN.gather(1, block_B1)
    block_BK = blocks_BNK.gather(1, block_B1.unsqueeze(2).expand(-1, 1, _BLOCK)).squeeze(1)
    within_BK = block_BK.cumsum(1, dtype=torch.float64)
    code_B1 = torch.searchsorted(within_BK, past_B1.clamp_(0, BELOW_ONE) * within_BK[:, -1:], right=True)
    return block_B1.mul_(_BLOCK).add_(code_B1).squeeze(1)


def guidance_scales(sampling: SamplingConfig, n_codes: int) -> np.ndarray:
    """The scale of each of T codes, (T,) float64; code t of T, s the ``guidance_scale``.

    constant
        s.
    linear
        1 + (s - 1) * t / (T - 1): Chang et al. 2023, arXiv:2301.00704, section 2.7, over the tokens of an image.
    power-cosine
        1 + (s - 1) * (1 - cos(pi * (t / T) ** p)) / 2 with p the ``schedule_power``: Yu et al. 2024,
        arXiv:2411.00776, appendix; the first codes are drawn freely, the last ones close to the class.
    step
        1 for the first ``schedule_start`` of the codes, then s.

    Outside ``guidance_interval`` the scale is 1 (Kynkaanniemi et al. 2024, arXiv:2404.07724, section 3, with the share
    of codes drawn in place of the noise level).
    """
    share_T = np.arange(n_codes) / n_codes
    if sampling.schedule == "linear":
        strength_T = np.linspace(0.0, 1.0, n_codes) if n_codes > 1 else np.ones(1)
    elif sampling.schedule == "power-cosine":
        strength_T = (1 - np.cos(np.pi * share_T**sampling.schedule_power)) / 2
    elif sampling.schedule == "step":
        strength_T = (share_T >= sampling.schedule_start).astype(np.float64)
    else:
        strength_T = np.ones(n_codes)
    scales_T = np.where(strength_T == 1, sampling.guidance_scale, 1 + (sampling.guidance_scale - 1) * strength_T)
    first, last = sampling.guidance_interval
    return np.where((share_T >= first) & (share_T < last), scales_T, 1.0)


def guide(conditional_BV: torch.Tensor, unconditional_BV: torch.Tensor, scale: float) -> torch.Tensor:
    """Logits of the guided distribution, u + scale * (c - u), written as an interpolation between the two.

    Scale 1 gives the conditional logits and scale 0 the unconditional ones, exactly. Both must be finite: of a prior
    whose codebooks differ in size, pass ``PriorModel.possible`` ones.
    """
    return torch.lerp(unconditional_BV, conditional_BV, scale)
