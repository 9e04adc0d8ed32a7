"""Priors that were never trained, of every architecture and for every kind of code grid."""

from __future__ import annotations

from typing import Any

import torch

from foundation.codes.spec import CodeLevel, CodeSpec, code_positions
from foundation.images.config import Preprocess
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.decode import iterate_codes
from stage2_prior.decoding.engine import DecodingEngine
from stage2_prior.decoding.probs import sample_codes
from stage2_prior.decoding.sampling import SamplingConfig, guidance_scales, guide
from stage2_prior.prior import PriorModel

LEVELS = [
    (CodeLevel(height=4, width=4, codebook_size=29),),
    (CodeLevel(height=3, width=5, codebook_size=29),),
    (CodeLevel(height=1, width=7, codebook_size=29),),
    (CodeLevel(height=1, width=3, codebook_size=29, depth=4),),
    (CodeLevel(height=2, width=1, codebook_size=5), CodeLevel(height=4, width=3, codebook_size=9)),
    (CodeLevel(height=1, width=2, codebook_size=9, depth=2), CodeLevel(height=2, width=2, codebook_size=5, depth=3)),
]
"""One level, a residual one, two levels, two residual levels; square and not; codebooks of unequal size."""

OPTIONS = [
    {},
    {"qk_norm": False},
    {"positions": "learned"},
    {"target_aware": True},
    {"positions": "learned", "target_aware": True, "qk_norm": False},
    {"block": "gpt", "positions": "learned", "qk_norm": False},
    {"block": "gpt", "class_rotation": "zero"},
]
"""Every architecture of the transformer."""


def spec(levels: tuple[CodeLevel, ...] = LEVELS[0], n_classes: int = 3) -> CodeSpec:
    """Codes of images of 8 pixels for each code of the last level."""
    names = tuple(f"class {i}" for i in range(n_classes))
    preprocess = Preprocess(height=8 * levels[-1].height, width=8 * levels[-1].width)
    return CodeSpec(levels=levels, stride=8, preprocess=preprocess, fingerprint="f" * 64, class_names=names)


def model(levels: tuple[CodeLevel, ...] = LEVELS[0], n_classes: int = 3, **changes: object) -> PriorModel:
    """A small prior whose head is not zero."""
    torch.manual_seed(0)
    settings: dict = {"d_model": 32, "n_layers": 3, "n_heads": 4, "rope_base": 100.0, "dropout": 0.2, **changes}
    prior = PriorModel(PriorConfig(**settings), spec(levels, n_classes)).eval()
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return prior


def examples(prior: PriorModel, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes within the codebook of their position, and labels with the null class among them."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.from_numpy(code_positions(prior.spec).codebook_size_T)
    tokens = (torch.rand(batch, prior.n_codes, generator=generator) * sizes).long()
    return tokens, torch.randint(prior.n_classes + 1, (batch,), generator=generator)


def with_norm_weights(prior: PriorModel) -> PriorModel:
    """Give the norms weights that are not all 1."""
    for parameter in prior.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.7, 1.3)
    return prior


def decode_codes(
    prior: PriorModel,
    labels_B: torch.Tensor,
    uniforms_BT: torch.Tensor,
    sampling: SamplingConfig,
    *,
    known_BT: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """All codes of ``iterate_codes``, (B, T)."""
    codes_BT = labels_B.new_empty(len(labels_B), prior.n_codes) if known_BT is None else known_BT.clone()
    for step in iterate_codes(prior, labels_B, uniforms_BT, sampling, known_BT=known_BT, **options):
        codes_BT[step.rows].scatter_(1, step.positions_BK, step.codes_BK)
    return codes_BT


@torch.no_grad()
def decode_without_cache(
    prior: PriorModel,
    labels_B: torch.Tensor,
    uniforms_BT: torch.Tensor,
    sampling: SamplingConfig,
    known_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """The codes of ``decode_codes`` from two passes of the whole model for every code: slow and obvious."""
    null_B = torch.full_like(labels_B, prior.null_class)
    tokens_BT = torch.zeros(len(labels_B), prior.n_codes, dtype=torch.int64, device=labels_B.device)
    for t, scale in enumerate(guidance_scales(sampling, prior.n_codes)):
        size = int(prior.sizes_T[t])
        conditional, unconditional = (prior(tokens_BT, labels)[:, t, :size].float() for labels in (labels_B, null_B))
        codes_B = sample_codes(guide(conditional, unconditional, scale), uniforms_BT[:, t], sampling)
        tokens_BT[:, t] = codes_B if known_BT is None else torch.where(known_BT[:, t] < 0, codes_B, known_BT[:, t])
    return tokens_BT


def cached_logits(
    engine: DecodingEngine, tokens_BT: torch.Tensor, labels_B: torch.Tensor, given: int
) -> list[torch.Tensor]:
    """Logits of codes ``given`` and after, the first at once and the rest one by one: (B, V) each."""
    prior = engine.prior
    positions = prior.position_tables.of_grid(tokens_BT.device, engine.grid)
    cache = engine.new_cache(len(tokens_BT))
    x = engine.extend(tokens_BT[:, :given], positions.part(0, given + 1), cache, labels_B)
    found = [engine.logits(x).squeeze(1)]
    for t in range(given + 1, prior.n_codes):
        x = engine.extend(tokens_BT[:, t - 1 : t], positions.part(t, t + 1), cache)
        found.append(engine.logits(x).squeeze(1))
    return found
