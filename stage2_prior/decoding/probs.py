"""From logits to codes: temperature, filters, and inverse-CDF sampling. Each row is independent of the others."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from stage2_prior.decoding.filters import BELOW_ONE, DigitFilters, Filters, SortingFilters
from stage2_prior.decoding.sampling import MIN_TEMPERATURE, SamplingConfig

_BLOCK_CODES = 128


def filters_for(n_rows: int, n_codes: int, device: torch.device) -> Filters:
    """For up to ``n_rows`` rows of up to ``n_codes`` probabilities."""
    return SortingFilters(n_rows, n_codes) if device.type == "cpu" else DigitFilters(n_rows, n_codes, device)


def sample_codes(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, sampling: SamplingConfig, filters: Filters | None = None
) -> torch.Tensor:
    """One code per row, (B,) int64, from finite logits and one uniform number per row in [0, 1), float64."""
    if sampling.temperature < MIN_TEMPERATURE:
        return logits_BV.argmax(1)
    return sample_from(probabilities(logits_BV, sampling, filters), uniforms_B)


def least_race(probs_BV: torch.Tensor, race_BV: torch.Tensor) -> torch.Tensor:
    """One code per row, (B,) int64: the one with the least race / p, a draw from p for exponential numbers.

    Args:
        probs_BV: (B, V) probabilities, float32.
        race_BV: (B, V) numbers of the exponential distribution, see ``GumbelStreams``.
    """
    return (race_BV / probs_BV).argmin(1)


def probabilities(logits_BV: torch.Tensor, sampling: SamplingConfig, filters: Filters | None = None) -> torch.Tensor:
    """Apply the temperature, then the filters.

    Args:
        logits_BV: finite.
        sampling: settings.
        filters: memory for B rows and at least V codes; None allocates it.

    Returns:
        (B, V) float32 that sum to 1.
    """
    logits = logits_BV.float()
    if sampling.temperature < MIN_TEMPERATURE:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    if sampling.temperature != 1.0:
        logits = (logits - logits.amax(1, keepdim=True)).div_(sampling.temperature)
    probs_BV, chosen = logits.softmax(1), sampling.filters()
    if not chosen:
        return probs_BV
    n_rows, n_codes = probs_BV.shape
    filters = filters or filters_for(n_rows, n_codes, probs_BV.device)
    for apply, value in chosen:
        probs_BV = apply(probs_BV, value, filters)
    return probs_BV.div_(probs_BV.sum(1, keepdim=True))


def sample_from(probs_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF sampling: row b takes the code at which its cumulative probability passes its uniform number.

    The cumulative sum is taken over blocks of codes first, then within one block, in float64: each code's probability
    is met to about 1e-7 of itself.

    Args:
        probs_BV: (B, V) probabilities, float32; they need not sum to 1.
        uniforms_B: (B,) float64 in [0, 1), one per row, so that a row does not depend on its neighbours.

    Returns:
        (B,) int64 codes of positive probability.
    """
    n_rows, n_codes = probs_BV.shape
    if n_codes % _BLOCK_CODES:
        probs_BV = F.pad(probs_BV, (0, -n_codes % _BLOCK_CODES))
    blocks_BNK = probs_BV.view(n_rows, -1, _BLOCK_CODES)
    mass_BN = blocks_BNK.sum(2).double()
    ends_BN = mass_BN.cumsum(1)
    target_B1 = uniforms_B.clamp_max(BELOW_ONE).unsqueeze(1) * ends_BN[:, -1:]
    block_B1 = torch.searchsorted(ends_BN, target_B1, right=True)
    past_B1 = 1 - (ends_BN.gather(1, block_B1) - target_B1) / mass_BN.gather(1, block_B1)
    block_BK = blocks_BNK.gather(1, block_B1.unsqueeze(2).expand(-1, 1, _BLOCK_CODES)).squeeze(1)
    within_BK = block_BK.cumsum(1, dtype=torch.float64)
    code_B1 = torch.searchsorted(within_BK, past_B1.clamp_(0, BELOW_ONE) * within_BK[:, -1:], right=True)
    return block_B1.mul_(_BLOCK_CODES).add_(code_B1).squeeze(1)
