"""Drawing the codes of images from a prior: which are drawn and which are known, guidance, batches.

One batch of images while their codes are drawn: which rows are in the cache, and what comes next.

Codes while they are drawn, a row of the grid at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from foundation.codes.spec import CodeSpec
from foundation.errors import DataError
from foundation.randomness import derive_seed
from stage2_prior.decoding.engine import DecodingEngine, engine_for, images_that_fit
from stage2_prior.decoding.sampling import SamplingConfig, choose, filters_for, guidance_scales, guide
from stage2_prior.decoding.weights import MIN_ROWS
from stage2_prior.prior import PriorModel


class Drawing:
    """Steps through the positions of B images, in order.

    The conditional rows, one per image, stand first in the cache. Where guidance needs them, as many unconditional rows
    follow: from the first position that is guided, where they are filled with the codes so far in one go, to the last.

    Args:
        engine: computes the logits.
        labels_B: class numbers.
        uniforms_BT: one uniform number per code, float64, on the engine's device.
        sampling: how codes are drawn.
        scales_T: of guidance, from ``guidance_scales``.
        known_BT: codes to keep, -1 where one is to be drawn.
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
        self._to_draw = [start <= t and any_row for t, any_row in enumerate(self._unknown_BT.any(0).tolist())]
        self._mixed = [not bool(all_rows) for all_rows in self._unknown_BT.all(0).tolist()]
        self._start, self._end = start, 1 + max((t for t, drawn in enumerate(self._to_draw) if drawn), default=-1)
        self._nothing_B = torch.full_like(labels_B, engine.null_class)
        scales = [float(scales_T[t]) for t in range(self._end) if self._to_draw[t]]
        if scales and not any(scales):  # the class counts nowhere
            labels_B, scales_T = self._nothing_B, np.ones_like(scales_T)
        self._labels_B, self._scales = labels_B, [float(scale) for scale in scales_T]
        self._plan_rows(len(labels_B))
        filtered = sampling.top_k is not None or sampling.top_p is not None
        self._filters = filters_for(len(labels_B), engine.vocab_size, labels_B.device) if filtered else None

    def _plan_rows(self, n_images: int) -> None:
        """When the unconditional rows join and leave."""
        guided = [t for t in range(self._end) if self._to_draw[t] and self._scales[t] != 1.0]
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
            if self._to_draw[position]:
                self._draw(position)
        return self._codes_BT[:, position]

    def _advance(self, t: int) -> None:
        """Take in the codes before position t."""
        n_images, engine = len(self._labels_B), self._engine
        before = self._codes_BT[:, :t]
        if t == self._start:
            together = self._join == t
            labels = torch.cat([self._labels_B, self._nothing_B]) if together else self._labels_B
            self._rows = self._cache.rows(0, len(labels))
            self._x_RE = engine.prefill(labels, before.repeat(1 + together, 1), self._rows)
            return
        if t == self._leave and self._rows.n_rows > n_images:
            self._rows = self._rows.rows(0, n_images)
        latest = self._codes_BT[:, t - 1]
        self._x_RE = engine.decode_one(latest.repeat(self._rows.n_rows // n_images), self._rows)
        if t == self._join:
            joining = self._cache.rows(n_images, 2 * n_images)
            self._x_RE = torch.cat([self._x_RE, engine.prefill(self._nothing_B, before, joining)])
            self._rows = self._cache.rows(0, 2 * n_images)
            self._rows.filled = joining.filled

    def _draw(self, t: int) -> None:
        codes_B = choose(self._logits(t), self._uniforms_BT[:, t], self._sampling, self._filters)
        if self._mixed[t]:
            codes_B = torch.where(self._unknown_BT[:, t], codes_B, self._codes_BT[:, t])
        self._codes_BT[:, t] = codes_B

    def _logits(self, t: int) -> torch.Tensor:
        """Guided ones, (B, size of the codebook at t)."""
        n_images, scale, x_RE = len(self._labels_B), self._scales[t], self._x_RE
        if n_images >= MIN_ROWS and scale in (0.0, 1.0):
            return self._engine.logits(x_RE[:n_images] if scale == 1.0 else x_RE[n_images:], t)
        logits_RV = self._engine.logits(x_RE, t)
        return guide(logits_RV[:n_images], logits_RV[n_images:], scale) if len(x_RE) > n_images else logits_RV


OnCode = Callable[[int, torch.Tensor], None]
DRAW = -1
"""In known codes: a place whose code is to be drawn."""


class DecodedCode(NamedTuple):
    """One step of decoding.

    Attributes:
        position: of the code in the sequence, 0 to T - 1.
        rows: which images of the call the step is about.
        codes_B: their codes at this position, int64, drawn or known.
    """

    position: int
    rows: slice
    codes_B: torch.Tensor


def stream_uniforms(seeds: list[int], n_codes: int) -> torch.Tensor:
    """One stream of uniform numbers per image, (B, T) float64: image b depends on ``seeds[b]`` alone."""
    rows = [
        torch.rand(n_codes, dtype=torch.float64, generator=torch.Generator().manual_seed(derive_seed("sample", seed)))
        for seed in seeds
    ]
    return torch.stack(rows)


def decode_codes(
    prior: PriorModel,
    labels_B: torch.Tensor,
    uniforms_BT: torch.Tensor,
    sampling: SamplingConfig,
    *,
    known_BT: torch.Tensor | None = None,
    on_code: OnCode | None = None,
    max_rows: int | None = None,
    start: int | None = None,
) -> torch.Tensor:
    """Draw the codes of an image per row.

    Args:
        prior: in evaluation mode.
        labels_B: class numbers, ``prior.null_class`` for none, int64.
        uniforms_BT: from ``stream_uniforms``.
        sampling: guidance, temperature and filters.
        known_BT: codes to keep as they are, int64, and -1 where one is to be drawn; each is drawn given the class and
            all codes before it, known ones included. None draws all.
        on_code: called with (position, codes_B) after each code, batch by batch.
        max_rows: most images drawn at once; None takes what fits the free memory. No result depends on it.
        start: the first position that is stepped through and reported; all codes before it must be known. None takes
            the number of codes that are known at the beginning of every image.

    Returns:
        (B, T) int64, in the order of ``CodeSpec``.

    Raises:
        DataError: shapes that do not fit each other or the prior, a label or a known code that does not exist, or an
            unknown code before ``start``.
    """
    codes_BT = labels_B.new_empty(len(labels_B), prior.n_codes)
    if known_BT is not None:
        _require_known(known_BT, prior, len(labels_B))
        codes_BT.copy_(known_BT)
    steps = iterate_codes(prior, labels_B, uniforms_BT, sampling, known_BT=known_BT, max_rows=max_rows, start=start)
    for step in steps:
        codes_BT[step.rows, step.position] = step.codes_B
        if on_code is not None:
            on_code(step.position, step.codes_B)
    return codes_BT


def iterate_codes(
    prior: PriorModel,
    labels_B: torch.Tensor,
    uniforms_BT: torch.Tensor,
    sampling: SamplingConfig,
    *,
    known_BT: torch.Tensor | None = None,
    max_rows: int | None = None,
    start: int | None = None,
) -> Iterator[DecodedCode]:
    """As ``decode_codes``, a step at a time: batch after batch, in each the positions from ``start`` to T - 1.

    Whoever has seen enough stops: what follows is computed on demand.
    """
    _require_inputs(prior, labels_B, uniforms_BT)
    if known_BT is not None:
        _require_known(known_BT, prior, len(labels_B))
        known_BT = known_BT.to(labels_B.device)
    if max_rows is not None and max_rows < 1:
        raise DataError("no image can be drawn", field="max_rows", found=max_rows, expected="1 or more, or None")
    start = _first_step(known_BT, prior.n_codes, start)
    scales_T = guidance_scales(sampling, prior.n_codes)
    engine = engine_for(prior)
    size = max_rows or images_that_fit(engine, 2 if np.any(scales_T[start:] != 1) else 1)
    uniforms_BT = uniforms_BT.to(labels_B.device)
    if known_BT is None:
        known_BT = torch.full((1, prior.n_codes), DRAW, device=labels_B.device).expand(len(labels_B), -1)
    while engine.batch_for(size) > size:
        size -= 1
    for first in range(0, len(labels_B), size):
        rows = slice(first, min(first + size, len(labels_B)))
        n_images = rows.stop - first
        last_again = [rows.stop - 1] * (engine.batch_for(n_images) - n_images)
        drawn = torch.tensor([*range(first, rows.stop), *last_again], device=labels_B.device)
        drawing = Drawing(engine, labels_B[drawn], uniforms_BT[drawn], sampling, scales_T, known_BT[drawn], start)
        for position in range(start, prior.n_codes):
            yield DecodedCode(position, rows, drawing.step(position)[:n_images].clone())
        del drawing  # and its cache, before the next one takes memory


@torch.no_grad()
def sample_codes_reference(
    prior: PriorModel,
    labels_B: torch.Tensor,
    uniforms_BT: torch.Tensor,
    sampling: SamplingConfig,
    known_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same draw without a cache, running the whole model twice for every code: slow and obvious, for tests."""
    nothing_B = torch.full_like(labels_B, prior.null_class)
    tokens_BT = torch.zeros(len(labels_B), prior.n_codes, dtype=torch.int64, device=labels_B.device)
    for t, scale in enumerate(guidance_scales(sampling, prior.n_codes)):
        conditional, unconditional = (
            prior.possible(prior(tokens_BT, labels)[:, t], t).float() for labels in (labels_B, nothing_B)
        )
        drawn_B = choose(guide(conditional, unconditional, scale), uniforms_BT[:, t], sampling)
        tokens_BT[:, t] = drawn_B if known_BT is None else torch.where(known_BT[:, t] < 0, drawn_B, known_BT[:, t])
    return tokens_BT


def _require_inputs(prior: PriorModel, labels_B: torch.Tensor, uniforms_BT: torch.Tensor) -> None:
    if labels_B.ndim != 1 or labels_B.dtype != torch.int64:
        raise DataError("has the wrong shape or type", field="labels_B", found=(tuple(labels_B.shape), labels_B.dtype),
                        expected="(B,) int64")  # fmt: skip
    if len(labels_B) and not 0 <= int(labels_B.min()) <= int(labels_B.max()) <= prior.null_class:
        raise DataError("has labels that do not exist", field="labels_B", found=labels_B.tolist(),
                        expected=f"0..{prior.null_class}")  # fmt: skip
    if uniforms_BT.shape != (len(labels_B), prior.n_codes) or uniforms_BT.dtype != torch.float64:
        raise DataError("does not fit the images", field="uniforms_BT",
                        found=(tuple(uniforms_BT.shape), uniforms_BT.dtype),
                        expected=f"({len(labels_B)}, {prior.n_codes}) float64")  # fmt: skip


def _require_known(known_BT: torch.Tensor, prior: PriorModel, n_images: int) -> None:
    if known_BT.shape != (n_images, prior.n_codes) or known_BT.dtype != torch.int64:
        raise DataError("does not fit the images", field="known_BT", found=(tuple(known_BT.shape), known_BT.dtype),
                        expected=f"({n_images}, {prior.n_codes}) int64")  # fmt: skip
    size_T = torch.from_numpy(prior.place_tables.size_T).to(known_BT.device)
    wrong_BT = (known_BT < DRAW) | (known_BT >= size_T)
    if wrong_BT.any():
        image, t = wrong_BT.nonzero()[0].tolist()
        raise DataError("no such code", field=f"known_BT[{image}, {t}]", found=int(known_BT[image, t]),
                        expected=f"0..{int(size_T[t]) - 1}, or {DRAW} to draw one")  # fmt: skip


def _first_step(known_BT: torch.Tensor | None, n_codes: int, start: int | None) -> int:
    """``start``, or the number of codes that all images begin with."""
    known = 0
    if known_BT is not None and len(known_BT):
        known = int((known_BT >= 0).all(0).long().cumprod(0).sum())
    if start is None:
        return known
    if not 0 <= start <= min(known, n_codes):
        raise DataError("codes before it are not known", field="start", found=start, expected=f"0..{known}")
    return start


class DecodedRow(NamedTuple):
    """A row of one level's grid.

    Attributes:
        level: 0 is the coarsest.
        row: from the top.
        rows: which images of the call the codes belong to.
        codes: int64, (B, W), or (B, W, D) for a level of depth D.
    """

    level: int
    row: int
    rows: slice
    codes: torch.Tensor


def iterate_rows(steps: Iterable[DecodedCode], spec: CodeSpec) -> Iterator[DecodedRow]:
    """Gather the steps of ``decode.iterate_codes`` into rows, each as soon as its last code is there.

    Where the first step is not the first code of a row, that row is left out.
    """
    last = {}  # the last position of a row => (level, row, width, depth)
    end = 0
    for i, level in enumerate(spec.levels):
        for row in range(level.height):
            end += level.width * level.depth
            last[end - 1] = (i, row, level.width, level.depth)
    gathered: list[torch.Tensor] = []
    for step in steps:
        gathered.append(step.codes_B)
        if step.position not in last:
            continue
        i, row, width, depth = last[step.position]
        if len(gathered) == width * depth:
            codes = torch.stack(gathered, 1)
            yield DecodedRow(i, row, step.rows, codes if depth == 1 else codes.unflatten(1, (width, depth)))
        gathered = []
