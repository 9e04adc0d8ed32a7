"""Drawing all codes of an image from a prior, one code at a time with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable

import torch

from foundation.randomness import derive_seed
from stage2_prior.prior import PriorModel
from stage2_prior.sampling import SamplingConfig, draw, guide, probabilities

OnCode = Callable[[int, torch.Tensor], None]


def stream_uniforms(seeds: list[int], n_codes: int) -> torch.Tensor:
    """One stream of uniform numbers per image, (B, T) float64: image b depends on ``seeds[b]`` alone."""
    rows = [
        torch.rand(n_codes, dtype=torch.float64, generator=torch.Generator().manual_seed(derive_seed("sample", seed)))
        for seed in seeds
    ]
    return torch.stack(rows)


@torch.no_grad()
def sample_codes(
    prior: PriorModel,
    labels_B: torch.Tensor,
    uniforms_BT: torch.Tensor,
    sampling: SamplingConfig,
    on_code: OnCode | None = None,
) -> torch.Tensor:
    """Draw the codes of an image per row, cached.

    Args:
        prior: in evaluation mode.
        labels_B: class numbers, ``prior.null_class`` for none.
        uniforms_BT: from ``stream_uniforms``.
        sampling: guidance, temperature and filters.
        on_code: called with (position, codes_B) after each code.

    Returns:
        (B, T) int64, in the order of ``CodeSpec``.
    """
    batch = len(labels_B)
    guided = _needs_guidance(prior, labels_B, sampling)
    rows_labels = torch.cat([labels_B, torch.full_like(labels_B, prior.null_class)]) if guided else labels_B
    cache = prior.new_cache(len(rows_labels))
    tokens_BT = torch.empty(batch, prior.n_codes, dtype=torch.int64, device=labels_B.device)
    logits = prior.prefill(rows_labels, tokens_BT.new_empty(len(rows_labels), 0), cache)
    for t in range(prior.n_codes):
        tokens_BT[:, t] = _choose(prior.possible(logits, t), uniforms_BT[:, t], sampling, guided=guided)
        if on_code is not None:
            on_code(t, tokens_BT[:, t])
        if t + 1 < prior.n_codes:
            latest = tokens_BT[:, t]
            logits = prior.decode_one(torch.cat([latest, latest]) if guided else latest, cache)
    return tokens_BT


@torch.no_grad()
def sample_codes_reference(
    prior: PriorModel, labels_B: torch.Tensor, uniforms_BT: torch.Tensor, sampling: SamplingConfig
) -> torch.Tensor:
    """The same draw without a cache, running the whole model for every code: slow and obvious, for tests."""
    guided = _needs_guidance(prior, labels_B, sampling)
    tokens_BT = torch.zeros(len(labels_B), prior.n_codes, dtype=torch.int64, device=labels_B.device)
    for t in range(prior.n_codes):
        logits = prior(tokens_BT, labels_B)[:, t]
        if guided:
            nothing = torch.full_like(labels_B, prior.null_class)
            logits = torch.cat([logits, prior(tokens_BT, nothing)[:, t]])
        tokens_BT[:, t] = _choose(prior.possible(logits, t), uniforms_BT[:, t], sampling, guided=guided)
    return tokens_BT


def _needs_guidance(prior: PriorModel, labels_B: torch.Tensor, sampling: SamplingConfig) -> bool:
    return sampling.guidance_scale != 1.0 and bool((labels_B != prior.null_class).any())


def _choose(logits: torch.Tensor, uniforms_B: torch.Tensor, sampling: SamplingConfig, *, guided: bool) -> torch.Tensor:
    """Logits of (B,) or, guided, (2B,) rows => (B,) codes."""
    if guided:
        conditional, unconditional = logits.float().chunk(2)
        logits = guide(conditional, unconditional, sampling.guidance_scale)
    return draw(probabilities(logits, sampling), uniforms_B)
