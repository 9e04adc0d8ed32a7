"""Sampling the codes of a request, with or without a choice among candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from foundation.randomness import derive_seed
from stage2_prior.decoding.batch import DecodedCodes
from stage2_prior.decoding.decode import iterate_codes, stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

OnStep = Callable[[DecodedCodes], None]
_SCORED_TOKENS = 1 << 15
"""Codes whose likelihood is computed at once."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """B images to sample.

    Attributes:
        labels: class number of each; the prior's null class for none.
        seeds: of each image's random stream.
        sampling: guidance, temperature, filters and order.
        known_BT: codes to keep, -1 where one is to be sampled; None samples all.
        start: position from which codes are stepped through in raster order; all before it are known.
        max_rows: most images in one batch; None takes what fits.
        uniforms_BT: random numbers instead of the seeds' streams; None takes the streams.
        grid: of all images, an index into ``CodeSpec.grids``.
    """

    labels: list[int]
    seeds: list[int]
    sampling: SamplingConfig
    known_BT: torch.Tensor | None = None
    start: int = 0
    max_rows: int | None = None
    uniforms_BT: torch.Tensor | None = None
    grid: int = 0


def steps(prior: PriorModel, request: SampleRequest) -> Iterator[DecodedCodes]:
    """The codes of a request, one pass of a batch after another."""
    device, uniforms_BT = prior.head.weight.device, request.uniforms_BT
    return iterate_codes(
        prior,
        torch.tensor(request.labels, device=device),
        stream_uniforms(request.seeds, prior.n_codes) if uniforms_BT is None else uniforms_BT,
        request.sampling,
        known_BT=None if request.known_BT is None else request.known_BT.to(device),
        max_rows=request.max_rows,
        start=request.start,
        grid=request.grid,
        seeds=request.seeds,
    )


def draw(
    prior: PriorModel, request: SampleRequest, *, on_step: OnStep | None = None, show_progress: bool = True
) -> torch.Tensor:
    """Sample the codes of a request.

    Args:
        prior: in evaluation mode.
        request: what to sample.
        on_step: called after each pass of each batch; it may change the codes of that pass in place.
        show_progress: show a bar, if it takes longer than two seconds.

    Returns:
        (B, T) int64 codes on the prior's device.
    """
    shape = (len(request.labels), prior.n_codes)
    codes_BT = torch.empty(shape, dtype=torch.int64, device=prior.head.weight.device)
    if request.known_BT is not None:
        codes_BT.copy_(request.known_BT)
    total = shape[0] * (shape[1] - request.start)
    with tqdm(total=total, desc="sampling", unit="code", delay=2, disable=not show_progress) as progress:
        for step in steps(prior, request):
            if on_step is not None:
                on_step(step)
            codes_BT[step.rows].scatter_(1, step.positions_BK, step.codes_BK)
            progress.update(step.codes_BK.numel())
    return codes_BT


def draw_best(
    prior: PriorModel, request: SampleRequest, best_of: int, *, show_progress: bool = True
) -> tuple[torch.Tensor, list[int]]:
    """Sample several candidates of each image and keep the one whose codes are the likeliest given the class.

    Candidate 0 of an image is the one that its own seed gives.

    Args:
        prior: in evaluation mode.
        request: what to sample, from the streams of its seeds.
        best_of: candidates of each image, 1 or more.
        show_progress: show a bar, if it takes longer than two seconds.

    Returns:
        (B, T) int64 codes, and for each image the seed that gives it without a choice.
    """
    if best_of == 1:
        return draw(prior, request, show_progress=show_progress), request.seeds
    seeds = [candidate_seed(seed, i) for seed in request.seeds for i in range(best_of)]
    labels = [label for label in request.labels for _ in range(best_of)]
    known = None if request.known_BT is None else request.known_BT.repeat_interleave(best_of, 0)
    many = dataclasses.replace(request, labels=labels, seeds=seeds, known_BT=known)
    codes_CT = draw(prior, many, show_progress=show_progress)
    nats_Bn = nats_of(prior, codes_CT, labels, request.grid).view(-1, best_of)
    chosen_B = nats_Bn.argmin(1) + torch.arange(len(nats_Bn)) * best_of
    return codes_CT[chosen_B.to(codes_CT.device)], [seeds[i] for i in chosen_B.tolist()]


def candidate_seed(seed: int, index: int) -> int:
    """The seed of an image's candidate; candidate 0 has the image's own."""
    return seed if index == 0 else derive_seed("candidate", seed, index)


def nats_of(prior: PriorModel, codes_BT: torch.Tensor, labels: list[int], grid: int = 0) -> torch.Tensor:
    """-ln p(codes | class) of each image, (B,) float64 on the CPU."""
    return nats_of_codes(prior, codes_BT, labels, grid).cpu().double().sum(1)


@torch.no_grad()
def nats_of_codes(prior: PriorModel, codes_BT: torch.Tensor, labels: list[int], grid: int = 0) -> torch.Tensor:
    """-ln p(code | class, codes before it in raster order), (B, T) float32 on the prior's device.

    Memory does not grow with B.
    """
    labels_B = torch.tensor(labels, device=codes_BT.device)
    rows = max(1, _SCORED_TOKENS // codes_BT.shape[1])
    parts = zip(codes_BT.split(rows), labels_B.split(rows), strict=True)
    return torch.cat([prior.nll(codes, label, grid) for codes, label in parts])
