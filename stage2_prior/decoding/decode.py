"""Sampling of codes: checks, orders and batches; ``batch.py`` and ``masked.py`` sample a batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from foundation.arguments import require_type, shown
from foundation.config import require
from foundation.errors import DataError
from foundation.hardware import has_float64
from foundation.training.linear import packed_weights
from stage2_prior.decoding.batch import BatchDecoder, DecodedCodes, MixtureDecoder, Wanted
from stage2_prior.decoding.cache import images_that_fit
from stage2_prior.decoding.engine import CompiledEngine, DecodingEngine, RecomputingEngine, require_ready
from stage2_prior.decoding.masked import MaskedDecoder
from stage2_prior.decoding.pace import Pace
from stage2_prior.decoding.sampling import FILTERS, SamplingConfig, guidance_scales
from stage2_prior.decoding.streams import GumbelStreams, LatentStreams, PassStreams, stream
from stage2_prior.orders import MASKED, ORDERS, Cells, known_first, pass_sizes
from stage2_prior.prior import PriorModel

_GUIDED_CANDIDATES = 32

__all__ = ["MASKED", "DecodedCodes", "engine_for", "iterate_codes", "stream_uniforms"]


def stream_uniforms(seeds: Sequence[int], n_codes: int) -> torch.Tensor:
    """One stream of uniform numbers per image, (B, T) float64: image b depends on ``seeds[b]`` alone.

    Raises:
        DataError: seeds that are no list of whole numbers, or no number of codes.
    """
    _require_seeds(seeds)
    sound = isinstance(n_codes, int) and n_codes > 0
    DataError.unless(sound, "is not a number of codes", field="n_codes", found=shown(n_codes), expected="1 or more")
    if not seeds:
        return torch.empty(0, n_codes, dtype=torch.float64)
    return torch.stack([torch.rand(n_codes, dtype=torch.float64, generator=stream("sample", seed)) for seed in seeds])


def engine_for(prior: PriorModel, grid: int = 0) -> DecodingEngine:
    """The engine of a prior for images of one grid.

    After ``prior.compile_decoding()`` it is a ``CompiledEngine``, which is kept with its programs. That is for priors
    with a key-value cache; the others have a ``RecomputingEngine``.
    """
    if not prior.is_cached:
        return RecomputingEngine(prior, grid)
    if not prior.decodes_compiled:
        return DecodingEngine(prior, grid)
    require_ready(prior)
    weight = prior.head.weight
    key = grid, weight.device, weight.dtype
    if key not in prior.programs:
        prior.programs[key] = CompiledEngine(prior, grid)
    engine: CompiledEngine = prior.programs[key]
    return engine


def iterate_codes(
    prior: PriorModel,
    labels_B: torch.Tensor,
    uniforms_BT: torch.Tensor,
    sampling: SamplingConfig,
    *,
    known_BT: torch.Tensor | None = None,
    max_rows: int | None = None,
    start: int | None = None,
    grid: int = 0,
    seeds: Sequence[int] | None = None,
) -> Iterator[DecodedCodes]:
    """Sample the codes of an image per row: batch after batch, in each the codes that are not known, pass by pass.

    In raster order the passes are the positions from ``start`` to T - 1. In another order known codes come first, so
    that all of them condition all others.

    Lazy: stop iterating to stop computing. What is written into ``codes_BK`` of a step replaces those codes: later ones
    are sampled given them. Do not change weights in between: a CPU may have packed a copy.

    Args:
        prior: in evaluation mode.
        labels_B: class numbers, ``prior.null_class`` for none, int64.
        uniforms_BT: from ``stream_uniforms``.
        sampling: guidance, temperature, filters and order.
        known_BT: codes to keep, int64, ``MASKED`` where one is sampled. None samples all.
        max_rows: most images in one batch; None takes what fits the free memory. No code depends on it, but by rounding
            where two codes are all but equally near to a uniform number.
        start: in raster order the first position that is stepped through and reported; all codes before it must be
            known. None takes the number of codes that are known at the beginning of every image.
        grid: of all images, an index into ``spec.grids``.
        seeds: of the images, for random orders and masked priors.

    Raises:
        DataError: shapes that do not fit each other or the prior, a label or a known code that does not exist, an
            unknown code before ``start``, no such grid, or no seeds where they are needed.
        ConfigError: an order or passes that the prior does not know, or a prior in training mode.
    """
    require_type("sampling", sampling, SamplingConfig)
    _require_inputs(prior, labels_B, uniforms_BT)
    _require_numbers(prior, grid, max_rows)
    if known_BT is None:
        known_BT = torch.full((1, prior.n_codes), MASKED).expand(len(labels_B), -1)
    _require_known(known_BT, prior, len(labels_B))
    known_BT, start = known_BT.to(labels_B.device), _first_step(known_BT, start)
    order = _order(prior, sampling)
    from_seeds = prior.is_masked or prior.spec.latents or order == "random" or sampling.random == "gumbel"
    if seeds is None and len(labels_B) and from_seeds:
        raise DataError("are missing", field="seeds", expected="one for each image, in this order of codes")
    orders_BT = _orders(prior, order, known_BT, seeds or [0] * len(labels_B), sampling.passes, grid)
    share = _guidance_share(prior, sampling)
    scales_T = guidance_scales(sampling, prior.n_steps)
    if share is not None:
        scales_T = np.ones_like(scales_T)
    labels_B, scales_T = _plan_guidance(prior, labels_B, scales_T, start)
    uniforms_BT = uniforms_BT.to(labels_B.device if has_float64(labels_B.device) else "cpu")
    wanted = Wanted(labels_B, uniforms_BT, known_BT, orders_BT, share or 1.0)
    call = _Call(prior, wanted, sampling, scales_T, start, grid, max_rows)
    with contextlib.nullcontext() if prior.decodes_compiled else packed_weights(prior):
        yield from _masked_batches(call, seeds or []) if prior.is_masked else _causal_batches(call, seeds or [])


class _Call(NamedTuple):
    """Arguments of ``iterate_codes``, checked."""

    prior: PriorModel
    wanted: Wanted
    sampling: SamplingConfig
    scales_T: np.ndarray
    start: int
    grid: int
    max_rows: int | None

    def size(self) -> int:
        """Images in a batch."""
        guided = np.any(self.scales_T[self.start :] != 1)
        return self.max_rows or images_that_fit(self.prior, 2 if guided else 1)


def _causal_batches(call: _Call, seeds: Sequence[int]) -> Iterator[DecodedCodes]:
    prior, engine, size = call.prior, engine_for(call.prior, call.grid), call.size()
    n_channels = prior.n_codes // prior.n_steps
    while engine.batch_for(size) > size:
        size -= 1
    for rows, start in _batches(call, size):
        n_images = rows.stop - rows.start
        last_again = [rows.stop - 1] * (engine.batch_for(n_images) - n_images)
        images = torch.tensor([*range(rows.start, rows.stop), *last_again], device=call.wanted.labels_B.device)
        start //= n_channels
        sizes = _pass_sizes(prior.n_steps, start, call.sampling.passes)
        batch = _decoder(engine, call, images, start, max(sizes, default=1), seeds)
        for step, positions_BK, codes_BK in _passes(batch, prior, start, sizes, call.sampling):
            done = DecodedCodes(step * n_channels, rows, positions_BK[:n_images], codes_BK[:n_images].clone())
            yield done
            batch.replace(step, done.codes_BK)
        del batch  # and its cache, before the next one takes memory


def _passes(
    batch: BatchDecoder, prior: PriorModel, step: int, sizes: Sequence[int], sampling: SamplingConfig
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """The first step, positions and codes of each pass: of the given sizes, or one by one with guesses ahead."""
    if sampling.passes is not None or prior.spec.latents:
        for size in sizes:
            yield step, *batch.step(step, size)
            step += size
        return
    guesses_well = sampling.random == "gumbel" or sampling.takes_likeliest
    windows = Pace(prior, batch.n_rows, sampling.window, guesses_well=guesses_well)
    while step < prior.n_steps:
        positions_BK, codes_BK = batch.step(step) if windows.size == 1 else batch.window(step, windows.size)
        windows.took(codes_BK.shape[1])
        yield step, positions_BK, codes_BK
        step += codes_BK.shape[1]


def _decoder(
    engine: DecodingEngine, call: _Call, images: torch.Tensor, start: int, most: int, seeds: Sequence[int]
) -> BatchDecoder:
    """Of some images of the call."""
    prior, wanted = call.prior, call.wanted.take(images)
    of_images = [seeds[i] for i in images.tolist()] if seeds else []
    if prior.spec.latents:
        streams = LatentStreams(of_images, _candidates(call), prior.n_codes // prior.n_steps)
        return MixtureDecoder(engine, wanted, call.sampling, call.scales_T, start, most, streams)
    races = GumbelStreams(of_images, prior.vocab_size) if call.sampling.random == "gumbel" else None
    return BatchDecoder(engine, wanted, call.sampling, call.scales_T, start, most, races)


def _candidates(call: _Call) -> int:
    """Latents among which guidance chooses one."""
    return _GUIDED_CANDIDATES if np.any(call.scales_T != 1) else 1


def _batches(call: _Call, size: int) -> Iterator[tuple[slice, int]]:
    """Rows of each batch, and its first step: with several codes in a pass, images with as many known codes."""
    known_BT, orders_BT = call.wanted.known_BT, call.wanted.orders_BT
    if orders_BT is None:
        starts = [call.start] * len(known_BT)
    else:
        starts = (known_BT.gather(1, orders_BT) >= 0).long().cumprod(1).sum(1).tolist()
        if call.sampling.passes is None:
            starts = [min(starts)] * len(starts)
    first = 0
    for start, alike in itertools.groupby(starts):
        end = first + len(list(alike))
        for begin in range(first, end, size):
            yield slice(begin, min(begin + size, end)), start
        first = end


def _pass_sizes(n_codes: int, start: int, passes: int | None) -> list[int]:
    """Codes of each pass; before any is known, the first pass samples one, and the second what it leaves."""
    sizes = pass_sizes(n_codes - start, passes)
    if start == 0 and sizes and sizes[0] > 1:
        sizes = [1, sizes[0] - 1 + sum(sizes[1:2]), *sizes[2:]]
    return sizes


def _masked_batches(call: _Call, seeds: Sequence[int]) -> Iterator[DecodedCodes]:
    require_ready(call.prior)
    size = call.size()
    for first in range(0, len(call.wanted.labels_B), size):
        rows = slice(first, min(first + size, len(call.wanted.labels_B)))
        images = torch.arange(rows.start, rows.stop, device=call.wanted.labels_B.device)
        streams = PassStreams(seeds[rows], call.prior.n_codes)
        batch = MaskedDecoder(call.prior, call.grid, call.wanted.take(images), streams, call.sampling, call.scales_T)
        done = 0
        for positions_BK, codes_BK in batch.passes():
            step = DecodedCodes(done, rows, positions_BK.clone(), codes_BK.clone())
            yield step
            batch.replace(positions_BK, step.codes_BK)
            done += positions_BK.shape[1]


def _guidance_share(prior: PriorModel, sampling: SamplingConfig) -> float | None:
    """1 / guidance scale, of a prior that takes it as an input; None of others.

    Raises:
        ConfigError: a scale or schedule that it was not trained on.
    """
    if not prior.config.guidance_input:
        return None
    fix = "such a prior was trained with one scale for all codes of an image"
    scale, schedule, interval = sampling.guidance_scale, sampling.schedule, tuple(sampling.guidance_interval)
    require(scale >= 1, "guidance_scale", scale, "1 or more for a prior with guidance_input")
    require(schedule == "constant" or scale == 1, "schedule", schedule, "constant", fix)
    require(interval == (0.0, 1.0) or scale == 1, "guidance_interval", interval, "0 to 1", fix)
    return 1 / scale


def _order(prior: PriorModel, sampling: SamplingConfig) -> str:
    """The order in force.

    Raises:
        ConfigError: one that the prior does not know.
    """
    kind, asked = prior.config.order, sampling.order
    filtered = [name for name in FILTERS if getattr(sampling, name) is not None] if prior.spec.latents else []
    for name in filtered:
        require(False, name, getattr(sampling, name), "null for latents, whose probabilities are densities")
    fix = "leave it out, or train a prior of order any or masked"
    if kind not in ("any", "masked"):
        require(asked in ("auto", "raster"), "order", asked, "raster for this prior", fix)
        require(sampling.passes is None, "passes", sampling.passes, "null for a prior of raster order", fix)
        return "raster"
    require(asked != "confidence" or prior.is_masked, "order", asked, "raster, halton or random for this prior")
    alone = prior.is_masked or sampling.passes is None or len(prior.spec.slots) == 1 or prior.spec.latents
    expected = "null where there are several codes at a position: each is sampled given the one before it"
    require(alone, "passes", sampling.passes, expected)
    return asked if asked != "auto" else "confidence" if prior.is_masked else "raster"


def _orders(
    prior: PriorModel, order: str, known_BT: torch.Tensor, seeds: Sequence[int], passes: int | None, grid: int
) -> torch.Tensor | None:
    """The order of each image's codes; None for raster order of a causal prior, and for confidence."""
    if order == "confidence" or (order == "raster" and prior.config.order not in ("any", "masked")):
        return None
    known = known_BT.cpu().numpy() >= 0
    plain = passes is None and not prior.is_masked and order == "raster"
    if plain and not (known[:, 1:] & ~known[:, :-1]).any():  # known codes come first as it is
        return None
    cells = Cells(prior.spec.of_grid(grid))
    orders_BT = known_first(cells.codes(ORDERS[order](cells, seeds)), known, cells)
    return torch.from_numpy(orders_BT).to(known_BT.device)


def _plan_guidance(
    prior: PriorModel, labels_B: torch.Tensor, scales_T: np.ndarray, start: int
) -> tuple[torch.Tensor, np.ndarray]:
    """Labels and scales of the same distributions, without guidance where it makes no difference."""
    if len(labels_B) and int(labels_B.min()) == prior.null_class:  # no image has a class
        return labels_B, np.ones_like(scales_T)
    if start < len(scales_T) and not scales_T[start:].any():  # the class has no weight
        return torch.full_like(labels_B, prior.null_class), np.ones_like(scales_T)
    return labels_B, scales_T


def _require_inputs(prior: PriorModel, labels_B: torch.Tensor, uniforms_BT: torch.Tensor) -> None:
    require_type("prior", prior, PriorModel)
    _require_tensor("labels_B", labels_B, getattr(labels_B, "shape", ())[:1], torch.int64)
    if len(labels_B) and not 0 <= int(labels_B.min()) <= int(labels_B.max()) <= prior.null_class:
        labels, expected = shown(labels_B.tolist()), f"0..{prior.null_class}"
        raise DataError("has labels that do not exist", field="labels_B", found=labels, expected=expected)
    _require_tensor("uniforms_BT", uniforms_BT, (len(labels_B), prior.n_codes), torch.float64)


def _require_numbers(prior: PriorModel, grid: int, max_rows: int | None) -> None:
    known = isinstance(grid, int) and 0 <= grid < prior.n_grids
    DataError.unless(known, "no such grid", field="grid", found=shown(grid), expected=f"0..{prior.n_grids - 1}")
    fits, found = max_rows is None or (isinstance(max_rows, int) and max_rows >= 1), shown(max_rows)
    DataError.unless(fits, "is not a number of images", field="max_rows", found=found, expected="1 or more, or None")


def _require_known(known_BT: torch.Tensor, prior: PriorModel, n_images: int) -> None:
    _require_tensor("known_BT", known_BT, (n_images, prior.n_codes), torch.int64)
    size_T = prior.sizes_on(known_BT.device)
    wrong_BT = (known_BT < MASKED) | (known_BT >= size_T)
    if wrong_BT.any():
        image, t = wrong_BT.nonzero()[0].tolist()
        found, expected = int(known_BT[image, t]), f"0..{int(size_T[t]) - 1}, or {MASKED} to sample one"
        raise DataError("no such code", field=f"known_BT[{image}, {t}]", found=found, expected=expected)


def _require_tensor(field: str, x: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, torch.Tensor) else shown(x)
    expected = f"{tuple(shape)} {dtype}" if shape else f"a tensor of {dtype}, one for each image"
    DataError.unless(found == expected, "has the wrong shape or type", field=field, found=found, expected=expected)


def _first_step(known_BT: torch.Tensor, start: int | None) -> int:
    """``start``, or the number of codes that all images begin with."""
    known = int((known_BT >= 0).all(0).long().cumprod(0).sum()) if len(known_BT) else 0
    start, expected = known if start is None else start, f"0..{known}"
    right = isinstance(start, int) and 0 <= start <= known
    DataError.unless(right, "codes before it are not known", field="start", found=shown(start), expected=expected)
    return start


def _require_seeds(seeds: object) -> None:
    sound = isinstance(seeds, (list, tuple, range)) and all(isinstance(each, int) for each in seeds)
    DataError.unless(sound, "are not seeds", field="seeds", found=shown(seeds), expected="a list of whole numbers")
