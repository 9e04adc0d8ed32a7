"""One batch of images while their codes are drawn: which rows are in the cache, and what comes next."""

from __future__ import annotations

import numpy as np
import torch

from stage2_prior.engine import DecodingEngine
from stage2_prior.guidance import guide
from stage2_prior.linear import MIN_ROWS
from stage2_prior.sampling import SamplingConfig, choose, filters_for


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
