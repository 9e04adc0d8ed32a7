"""From logits to codes: guidance, temperature, top-k, top-p, and a draw. Pure functions of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from foundation.config import require

MAX_GUIDANCE = 1000.0
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How codes are drawn from the prior."""

    guidance_scale: float = 1.0
    """classifier-free guidance: 1 is the plain class-conditional distribution, larger follows the class more closely"""
    temperature: float = 1.0
    """divides the logits; 0 (and anything below 0.00001) always takes the likeliest code"""
    top_k: int | None = None
    """draw from the k likeliest codes only; null draws from all"""
    top_p: float | None = None
    """draw from the smallest set of codes with at least this total probability; null draws from all"""

    def __post_init__(self) -> None:
        scale = self.guidance_scale
        require(0 <= scale <= MAX_GUIDANCE, "guidance_scale", scale, f"a number from 0 to {MAX_GUIDANCE:g}")
        hot = math.isfinite(self.temperature) and self.temperature >= 0
        require(hot, "temperature", self.temperature, "a finite number, 0 or more")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1, or null")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and up to 1, or null")


def guide(conditional_BV: torch.Tensor, unconditional_BV: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance on logits (Ho and Salimans 2022, arXiv:2207.12598, Eq. 6).

    Scale 1 gives the conditional logits and scale 0 the unconditional ones, exactly. Both must be finite: of a prior
    whose codebooks differ in size, pass ``PriorModel.possible`` ones.
    """
    if scale == 1.0:
        return conditional_BV
    return unconditional_BV + scale * (conditional_BV - unconditional_BV)


def probabilities(logits_BV: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Temperature, then top-k, then top-p. (B, V) logits => (B, V) float32 that sum to 1.

    top-k keeps every code tied with the k-th likeliest; top-p keeps codes up to and including the one that crosses p
    (Holtzman et al. 2020, arXiv:1904.09751, section 3.1).
    """
    logits = logits_BV.float()
    if sampling.temperature < MIN_TEMPERATURE:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    logits = (logits - logits.amax(1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        threshold = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    chances = logits.softmax(1)
    if sampling.top_p is not None and sampling.top_p < 1.0:
        ordered, places = chances.sort(dim=1, descending=True)
        before = ordered.cumsum(1) - ordered  # probability of everything likelier
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        chances = torch.zeros_like(chances).scatter_(1, places, ordered)
        chances = chances / chances.sum(1, keepdim=True)
    return chances


def draw(chances_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF sampling: row b takes the code at which its cumulative probability passes its uniform number.

    Args:
        chances_BV: (B, V) probabilities.
        uniforms_B: (B,) float64 in [0, 1), one per row, so that a row does not depend on its neighbours.

    Returns:
        (B,) int64 codes of positive probability.
    """
    cumulative_BV = chances_BV.double().cumsum(1)
    targets_B1 = (uniforms_B.to(cumulative_BV.device) * cumulative_BV[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative_BV, targets_B1, right=True).squeeze(1).clamp_max(chances_BV.shape[1] - 1)
