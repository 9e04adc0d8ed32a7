"""Autoregressive sampling of codes: batches of images with known and sampled codes, and guided and plain steps."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from foundation.arguments import require_type, shown
from foundation.errors import DataError
from foundation.hardware import has_float64
from foundation.randomness import derive_seed
from stage2_prior.decoding.compiled import CompiledEngine
from stage2_prior.decoding.engine import DecodingEngine, images_that_fit
from stage2_prior.decoding.probs import filters_for, sample_codes
from stage2_prior.decoding.sampling import SamplingConfig, guidance_scales, guide
from stage2_prior.decoding.weights import MIN_ROWS
from stage2_prior.prior import PriorModel

MASKED = -1
"""Marks a code to be sampled among known codes."""
_State = list[tuple[int, int]]
_Engines = dict[int, DecodingEngine]
_ENGINES: weakref.WeakKeyDictionary[PriorModel, tuple[_State, bool, _Engines]] = weakref.WeakKeyDictionary()


class DecodedCode(NamedTuple):
    """One position of a batch of images.

    Attributes:
        position: of the code in the sequence, 0 to T - 1.
        rows: which images of the call form the batch.
        codes_B: their codes at this position, int64, sampled or known.
    """

    position: int
    rows: slice
    codes_B: torch.Tensor


def stream_uniforms(seeds: Sequence[int], n_codes: int) -> torch.Tensor:
    """One stream of uniform numbers per image, (B, T) float64: image b depends on ``seeds[b]`` alone.

    Raises:
        DataError: seeds that are no list of whole numbers, or no number of codes.
    """
    sound = isinstance(seeds, (list, tuple, range)) and all(isinstance(each, int) for each in seeds)
    DataError.unless(sound, "are not seeds", field="seeds", found=shown(seeds), expected="a list of whole numbers")
    sound = isinstance(n_codes, int) and n_codes > 0
    DataError.unless(sound, "is not a number of codes", field="n_codes", found=shown(n_codes), expected="1 or more")
    if not seeds:
        return torch.empty(0, n_codes, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(derive_seed("sample", seed)) for seed in seeds]
    return torch.stack([torch.rand(n_codes, dtype=torch.float64, generator=each) for each in generators])


def engine_for(prior: PriorModel, grid: int = 0) -> DecodingEngine:
    """The engine of a prior for images of one grid; a ``CompiledEngine`` after ``prior.compile_decoding()``.

    It holds a copy of the parameters of the plain modules, which the engines of all grids share. It is built at the
    first call, and again where torch counts a change of a parameter (an in-place operation, a move, a load). Writes
    through ``.data`` are not counted, and hooks and wrapped modules, such as adapters, have no effect.
    """
    state = [(each.data_ptr(), each._version) for each in prior.parameters()]
    known = _ENGINES.get(prior)
    if known is None or known[:2] != (state, prior.decodes_compiled):
        known = _ENGINES[prior] = state, prior.decodes_compiled, {}
    engines = known[2]
    if grid not in engines:
        kind = CompiledEngine if prior.decodes_compiled else DecodingEngine
        engines[grid] = kind(prior, grid, next((each.weights for each in engines.values()), None))
    return engines[grid]


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
) -> Iterator[DecodedCode]:
    """Sample the codes of an image per row: batch after batch, in each the positions from ``start`` to T - 1.

    Lazy: stop iterating to stop computing. What is written into ``codes_B`` of a step replaces those codes: later ones
    are sampled given them.

    Args:
        prior: in evaluation mode.
        labels_B: class numbers, ``prior.null_class`` for none, int64.
        uniforms_BT: from ``stream_uniforms``.
        sampling: guidance, temperature and filters.
        known_BT: codes to keep, int64, ``MASKED`` where one is sampled given the class and all codes before it, known
            ones included. None samples all.
        max_rows: most images in one batch; None takes what fits the free memory. No result depends on it.
        start: the first position that is stepped through and reported; all codes before it must be known. None takes
            the number of codes that are known at the beginning of every image.
        grid: of all images, an index into ``spec.grids``.

    Raises:
        DataError: shapes that do not fit each other or the prior, a label or a known code that does not exist, an
            unknown code before ``start``, or no such grid.
    """
    require_type("sampling", sampling, SamplingConfig)
    _require_inputs(prior, labels_B, uniforms_BT)
    known_grid = isinstance(grid, int) and 0 <= grid < prior.n_grids
    DataError.unless(known_grid, "no such grid", field="grid", found=shown(grid), expected=f"0..{prior.n_grids - 1}")
    if known_BT is not None:
        _require_known(known_BT, prior, len(labels_B))
        known_BT = known_BT.to(labels_B.device)
    if max_rows is not None and not (isinstance(max_rows, int) and max_rows >= 1):
        found, expected = shown(max_rows), "1 or more, or None"
        raise DataError("is not a number of images", field="max_rows", found=found, expected=expected)
    start = _first_step(known_BT, start)
    labels_B, scales_T = _plan_guidance(prior, labels_B, guidance_scales(sampling, prior.n_codes), start)
    engine = engine_for(prior, grid)
    size = max_rows or images_that_fit(engine, 2 if np.any(scales_T[start:] != 1) else 1)
    uniforms_BT = uniforms_BT.to(labels_B.device if has_float64(labels_B.device) else "cpu")
    if known_BT is None:
        known_BT = torch.full((1, prior.n_codes), MASKED, device=labels_B.device).expand(len(labels_B), -1)
    while engine.batch_for(size) > size:
        size -= 1
    for first in range(0, len(labels_B), size):
        rows = slice(first, min(first + size, len(labels_B)))
        n_images = rows.stop - first
        last_again = [rows.stop - 1] * (engine.batch_for(n_images) - n_images)
        images = torch.tensor([*range(first, rows.stop), *last_again], device=labels_B.device)
        labels, uniforms, known = labels_B[images], uniforms_BT[images.to(uniforms_BT.device)], known_BT[images]
        batch = BatchDecoder(engine, labels, uniforms, sampling, scales_T, known, start)
        for position in range(start, prior.n_codes):
            step = DecodedCode(position, rows, batch.step(position)[:n_images].clone())
            yield step
            batch.replace(position, step.codes_B)
        del batch  # and its cache, before the next one takes memory


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


def _require_known(known_BT: torch.Tensor, prior: PriorModel, n_images: int) -> None:
    _require_tensor("known_BT", known_BT, (n_images, prior.n_codes), torch.int64)
    size_T = torch.from_numpy(prior.position_tables.size_T).to(known_BT.device)
    wrong_BT = (known_BT < MASKED) | (known_BT >= size_T)
    if wrong_BT.any():
        image, t = wrong_BT.nonzero()[0].tolist()
        found, expected = int(known_BT[image, t]), f"0..{int(size_T[t]) - 1}, or {MASKED} to sample one"
        raise DataError("no such code", field=f"known_BT[{image}, {t}]", found=found, expected=expected)


def _require_tensor(field: str, x: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, torch.Tensor) else shown(x)
    expected = f"{tuple(shape)} {dtype}" if shape else f"a tensor of {dtype}, one for each image"
    DataError.unless(found == expected, "has the wrong shape or type", field=field, found=found, expected=expected)


def _first_step(known_BT: torch.Tensor | None, start: int | None) -> int:
    """``start``, or the number of codes that all images begin with."""
    known = 0
    if known_BT is not None and len(known_BT):
        known = int((known_BT >= 0).all(0).long().cumprod(0).sum())
    start, expected = known if start is None else start, f"0..{known}"
    right = isinstance(start, int) and 0 <= start <= known
    DataError.unless(right, "codes before it are not known", field="start", found=shown(start), expected=expected)
    return start


class BatchDecoder:
    """Steps through the positions of B images, in order.

    The cache holds the conditional rows, one per image, then as many unconditional rows for the positions from the
    first guided one, where one prefill enters the codes so far, to the last.

    Args:
        engine: computes the logits.
        labels_B: class numbers.
        uniforms_BT: one uniform number per code, float64, on the engine's device, or on the CPU if that one has no
            float64: codes are then sampled on the CPU.
        sampling: temperature and filters.
        scales_T: of guidance, from ``guidance_scales``.
        known_BT: codes to keep, -1 where one is sampled.
        start: the first position of ``step``; codes before it are known.
    """

    def __init__(
        self,
        engine: DecodingEngine,
        labels_B: torch.Tensor,
        uniforms_BT: torch.Tensor,
        sampling: SamplingConfig,
        scales_T: np.ndarray,
        known_BT: torch.Tensor,
        start: int,
    ) -> None:
        self._engine, self._uniforms_BT, self._sampling = engine, uniforms_BT, sampling
        self._codes_BT, self._unknown_BT = known_BT.clone(), known_BT < 0
        self._sampled = [start <= t and any_row for t, any_row in enumerate(self._unknown_BT.any(0).tolist())]
        self._mixed = [not all_rows for all_rows in self._unknown_BT.all(0).tolist()]
        self._start, self._end = start, 1 + max((t for t, sampled in enumerate(self._sampled) if sampled), default=-1)
        self._null_B = torch.full_like(labels_B, engine.null_class)
        self._labels_B, self._scales = labels_B, scales_T.tolist()
        self._plan_rows(len(labels_B))
        filtered = bool(sampling.filters())
        self._filters = filters_for(len(labels_B), engine.vocab_size, uniforms_BT.device) if filtered else None

    def _plan_rows(self, n_images: int) -> None:
        """Positions at which the unconditional rows join and leave."""
        guided = [t for t in range(self._end) if self._sampled[t] and self._scales[t] != 1.0]
        self._join, self._leave = (max(guided[0], self._start), guided[-1] + 1) if guided else (self._end, self._end)
        if n_images < MIN_ROWS:  # a single row would be computed by another kernel
            self._join, self._leave = self._start, self._end
        both = self._join < self._leave
        self._cache = self._engine.new_cache(n_images * (1 + both))

    @torch.inference_mode()
    def step(self, position: int) -> torch.Tensor:
        """The codes at a position, (B,) int64; to be called for ``start``, ``start + 1`` and so on."""
        if position < self._end:
            self._advance(position)
            if self._sampled[position]:
                self._sample(position)
        return self._codes_BT[:, position]

    def replace(self, position: int, codes_B: torch.Tensor) -> None:
        """Replace the codes of the first images at the position of the latest step."""
        self._codes_BT[: len(codes_B), position] = codes_B

    def _advance(self, t: int) -> None:
        """Run the engine on the codes before position t."""
        n_images, engine = len(self._labels_B), self._engine
        before = self._codes_BT[:, :t]
        if t == self._start:
            together = self._join == t
            labels = torch.cat([self._labels_B, self._null_B]) if together else self._labels_B
            self._rows = self._cache.rows(0, len(labels))
            self._x_RE = engine.prefill(labels, before.repeat(1 + together, 1), self._rows)
            return
        if t == self._leave and self._rows.n_rows > n_images:
            self._rows = self._rows.rows(0, n_images)
        latest = self._codes_BT[:, t - 1]
        self._x_RE = engine.decode_one(latest.repeat(self._rows.n_rows // n_images), self._rows)
        if t == self._join:
            joining = self._cache.rows(n_images, 2 * n_images)
            self._x_RE = torch.cat([self._x_RE, engine.prefill(self._null_B, before, joining)])
            self._rows = self._cache.rows(0, 2 * n_images)
            self._rows.filled = joining.filled

    def _sample(self, t: int) -> None:
        uniforms_B = self._uniforms_BT[:, t]
        logits_BV = self._logits(t).to(uniforms_B.device)
        codes_B = sample_codes(logits_BV, uniforms_B, self._sampling, self._filters).to(self._labels_B.device)
        if self._mixed[t]:
            codes_B = torch.where(self._unknown_BT[:, t], codes_B, self._codes_BT[:, t])
        self._codes_BT[:, t] = codes_B

    def _logits(self, t: int) -> torch.Tensor:
        """Guided logits, (B, size of the codebook at t)."""
        n_images, scale, x_RE = len(self._labels_B), self._scales[t], self._x_RE
        if n_images >= MIN_ROWS and scale in (0.0, 1.0):
            return self._engine.logits(x_RE[:n_images] if scale == 1.0 else x_RE[n_images:], t)
        logits_RV = self._engine.logits(x_RE, t)
        return guide(logits_RV[:n_images], logits_RV[n_images:], scale) if len(x_RE) > n_images else logits_RV
