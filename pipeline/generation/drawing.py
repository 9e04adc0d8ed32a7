"""Drawing the codes that an order describes, with or without a choice among candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from foundation.randomness import derive_seed
from stage2_prior.decoding.decode import DecodedCode, iterate_codes, stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

OnStep = Callable[[DecodedCode], None]
_SCORED_TOKENS = 1 << 15
"""Codes whose likelihood is computed at once."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """B images that are to be drawn.

    Attributes:
        labels: class number of each; the prior's null class for none.
        seeds: of each image's random stream.
        sampling: guidance, temperature and filters.
        known_BT: codes to keep, -1 where one is to be drawn; None draws all.
        start: position from which codes are stepped through; those before it are known. The same numbers come out only
            for the same start, so that it must not depend on the other images of a call.
        max_rows: most images drawn at once; None takes what fits.
        uniforms_BT: random numbers to use in place of those of the seeds.
    """

    labels: list[int]
    seeds: list[int]
    sampling: SamplingConfig
    known_BT: torch.Tensor | None = None
    start: int = 0
    max_rows: int | None = None
    uniforms_BT: torch.Tensor | None = None


def steps(prior: PriorModel, order: Order) -> Iterator[DecodedCode]:
    """The codes of an order, one position of a batch after another."""
    device = prior.head.weight.device
    uniforms_BT = order.uniforms_BT
    if uniforms_BT is None:
        uniforms_BT = stream_uniforms(order.seeds, prior.n_codes)
    return iterate_codes(
        prior,
        torch.tensor(order.labels, device=device),
        uniforms_BT,
        order.sampling,
        known_BT=None if order.known_BT is None else order.known_BT.to(device),
        max_rows=order.max_rows,
        start=order.start,
    )


def draw(prior: PriorModel, order: Order, *, on_step: OnStep | None = None, show_progress: bool = True) -> torch.Tensor:
    """Carry out an order.

    Args:
        prior: in evaluation mode.
        order: what to draw.
        on_step: called after each position of each batch.
        show_progress: show a bar, if it takes longer than two seconds.

    Returns:
        (B, T) int64 codes on the prior's device.
    """
    shape = (len(order.labels), prior.n_codes)
    codes_BT = torch.empty(shape, dtype=torch.int64, device=prior.head.weight.device)
    if order.known_BT is not None:
        codes_BT.copy_(order.known_BT)
    total = shape[0] * (shape[1] - order.start)
    with tqdm(total=total, desc="sampling", unit="code", delay=2, disable=not show_progress) as progress:
        for step in steps(prior, order):
            codes_BT[step.rows, step.position] = step.codes_B
            progress.update(len(step.codes_B))
            if on_step is not None:
                on_step(step)
    return codes_BT


def draw_best(
    prior: PriorModel, order: Order, best_of: int, *, show_progress: bool = True
) -> tuple[torch.Tensor, list[int]]:
    """Draw several candidates of each image and keep the likeliest.

    The likelihood is that of all codes given the class. Candidate 0 of an image is the one that its own seed gives.

    Args:
        prior: in evaluation mode.
        order: what to draw; its uniforms are those of the seeds.
        best_of: candidates of each image, 1 or more.
        show_progress: show a bar, if it takes longer than two seconds.

    Returns:
        (B, T) int64 codes, and for each the seed that gives it without a choice.
    """
    if best_of == 1:
        return draw(prior, order, show_progress=show_progress), order.seeds
    seeds = [candidate_seed(seed, i) for seed in order.seeds for i in range(best_of)]
    labels = [label for label in order.labels for _ in range(best_of)]
    known = None if order.known_BT is None else order.known_BT.repeat_interleave(best_of, 0)
    many = dataclasses.replace(order, labels=labels, seeds=seeds, known_BT=known)
    codes_CT = draw(prior, many, show_progress=show_progress)
    bits_Bn = nats_of(prior, codes_CT, labels).view(-1, best_of)
    chosen_B = bits_Bn.argmin(1) + torch.arange(len(bits_Bn), device=bits_Bn.device) * best_of
    return codes_CT[chosen_B], [seeds[i] for i in chosen_B.tolist()]


def candidate_seed(seed: int, index: int) -> int:
    """The seed of an image's candidate; that of candidate 0 is the image's own."""
    return seed if index == 0 else derive_seed("candidate", seed, index)


def nats_of(prior: PriorModel, codes_BT: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """-ln p(codes | class) of each image, (B,) float64 on the prior's device."""
    return nats_of_codes(prior, codes_BT, labels).double().sum(1)


@torch.no_grad()
def nats_of_codes(prior: PriorModel, codes_BT: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """-ln p(code | class, codes before it), (B, T) float32 on the prior's device; memory does not grow with B."""
    labels_B = torch.tensor(labels, device=codes_BT.device)
    rows = max(1, _SCORED_TOKENS // codes_BT.shape[1])
    parts = zip(codes_BT.split(rows), labels_B.split(rows), strict=True)
    return torch.cat([prior.nll(codes, label) for codes, label in parts])
