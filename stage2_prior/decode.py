"""Drawing the codes of images from a prior: which are drawn and which are known, guidance, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from foundation.errors import DataError
from foundation.randomness import derive_seed
from stage2_prior.drawing import Drawing
from stage2_prior.engine import engine_for
from stage2_prior.guidance import guidance_scales, guide
from stage2_prior.memory import images_that_fit
from stage2_prior.prior import PriorModel
from stage2_prior.sampling import SamplingConfig, choose

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
