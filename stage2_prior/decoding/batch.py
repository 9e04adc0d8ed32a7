"""A batch of images of a causal prior, sampled pass by pass over a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from foundation.randomness import derive_seed
from stage2_prior.decoding.cache import Cache
from stage2_prior.decoding.engine import DecodingEngine
from stage2_prior.decoding.probs import filters_for, sample_codes, sample_from
from stage2_prior.decoding.sampling import SamplingConfig, guide
from stage2_prior.mixture import MixturePrior
from stage2_prior.positions import Positions


class DecodedCodes(NamedTuple):
    """Codes of one pass.

    Attributes:
        step: codes of each image that are known before the pass, or are sampled in passes before it.
        rows: which images of the call form the batch.
        positions_BK: of the codes in the sequence, 0 to T - 1, int64.
        codes_BK: the codes there, int64, sampled or known.
    """

    step: int
    rows: slice
    positions_BK: torch.Tensor
    codes_BK: torch.Tensor


@dataclass(frozen=True)
class Wanted:
    """B images to sample, on the device of the prior.

    Attributes:
        labels_B: class numbers, int64.
        uniforms_BT: one uniform number for each position, float64, on the prior's device, or on the CPU if that one has
            no float64: codes are then sampled on the CPU.
        known_BT: codes to keep, ``MASKED`` where one is sampled.
        orders_BT: the order in which the codes of each image are sampled; None for raster order.
    """

    labels_B: torch.Tensor
    uniforms_BT: torch.Tensor
    known_BT: torch.Tensor
    orders_BT: torch.Tensor | None = None

    def take(self, images: torch.Tensor) -> Wanted:
        """Some images, by number."""
        orders_BT = None if self.orders_BT is None else self.orders_BT[images]
        uniforms_BT = self.uniforms_BT[images.to(self.uniforms_BT.device)]
        return Wanted(self.labels_B[images], uniforms_BT, self.known_BT[images], orders_BT)


class BatchDecoder:
    """Steps through the codes of B images in their order.

    The cache holds the conditional rows, one per image, then as many unconditional rows for the codes from the first
    guided one, where they enter all codes so far, to the last. A pass that samples K codes takes in the codes before
    it, and the last of these K times, with each of the K positions as what it predicts: ``KVCache.append``. Nothing is
    computed at steps whose codes are known; the next pass takes them in.

    Args:
        engine: of the prior.
        wanted: the images.
        sampling: temperature and filters.
        scales_T: of guidance by step, from ``guidance_scales``.
        start: the first step; codes before it are known.
        most: the largest number of codes in a pass.
    """

    def __init__(
        self,
        engine: DecodingEngine,
        wanted: Wanted,
        sampling: SamplingConfig,
        scales_T: np.ndarray,
        start: int,
        most: int = 1,
    ) -> None:
        self._engine, self._sampling, self._scales, self._start = engine, sampling, scales_T.tolist(), start
        prior, labels_B, orders_BT = engine.prior, wanted.labels_B, wanted.orders_BT
        self._labels_B, self._null_B = labels_B, torch.full_like(labels_B, prior.null_class)
        self._uniforms_BT, self._codes_BT = wanted.uniforms_BT, wanted.known_BT.clone()
        self._unequal = prior.sizes(wanted.known_BT[:1]) is not None
        if orders_BT is None:
            self._positions = prior.position_tables.of_grid(labels_B.device, engine.grid)
            orders_BT = torch.arange(prior.n_codes, device=labels_B.device).expand_as(wanted.known_BT)
        else:
            grids_B = torch.full_like(labels_B, engine.grid) if prior.n_grids > 1 else None
            self._positions = prior.position_tables.ordered(prior.orders_in_steps(orders_BT), len(labels_B), grids_B)
            self._uniforms_BT = self._uniforms_BT.gather(1, orders_BT.to(self._uniforms_BT.device))
            self._codes_BT = self._codes_BT.gather(1, orders_BT)
        self._orders_BT, self._codes_BT = prior.in_steps(orders_BT), prior.in_steps(self._codes_BT)
        self._unknown_BT = self._codes_BT < 0
        self._plan_rows(most)
        n_rows, filtered = len(labels_B) * most, bool(sampling.filters())
        self._filters = filters_for(n_rows, prior.vocab_size, self._uniforms_BT.device) if filtered else None

    def _plan_rows(self, most: int) -> None:
        """Steps at which the unconditional rows join and leave."""
        n_images, unknown = len(self._labels_B), self._unknown_BT.transpose(0, 1).flatten(1)
        any_unknown, all_unknown = unknown.any(1).tolist(), unknown.all(1).tolist()
        self._sampled = [self._start <= t and unknown for t, unknown in enumerate(any_unknown)]
        self._mixed = [not all_rows for all_rows in all_unknown]
        self._end = 1 + max((t for t, sampled in enumerate(self._sampled) if sampled), default=-1)
        guided = [t for t in range(self._end) if self._sampled[t] and self._scales[t] != 1.0]
        self._join, self._leave = (guided[0], guided[-1] + 1) if guided else (self._end, self._end)
        both = self._join < self._leave
        self._memory = memory = self._engine.new_cache(n_images * (1 + both), most - 1)
        self._together = memory.rows(0, memory.n_rows)
        self._conditional = memory.rows(0, n_images)
        self._unconditional = memory.rows(n_images, 2 * n_images) if both else None

    @torch.inference_mode()
    def step(self, first: int, n_codes: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions and codes of some steps, (B, K) int64 each; to be called from ``start`` on, without gaps."""
        steps = slice(first, first + n_codes)
        if any(self._sampled[steps]):
            codes = self._sample(first, n_codes, self._advance(first, n_codes))
            if any(self._mixed[steps]):
                codes = torch.where(self._unknown_BT[:, steps], codes, self._codes_BT[:, steps])
            self._codes_BT[:, steps] = codes
        return self._orders_BT[:, steps].flatten(1), self._codes_BT[:, steps].flatten(1)

    def replace(self, first: int, codes_BK: torch.Tensor) -> None:
        """Replace the codes of the first images at the latest steps."""
        codes = self._engine.prior.in_steps(codes_BK)
        self._codes_BT[: len(codes), first : first + codes.shape[1]] = codes

    def _advance(self, first: int, n_codes: int) -> torch.Tensor:
        """Run the engine up to the codes before a step: (R, K, E), the conditional rows first."""
        guided = self._unconditional is not None and self._join < first + n_codes and first < self._leave
        if not guided:
            return self._extend(self._conditional, self._labels_B, first, n_codes)
        assert self._unconditional is not None
        if self._conditional.filled == self._unconditional.filled:
            self._together.filled = self._conditional.filled
            labels_R = torch.cat([self._labels_B, self._null_B])
            hidden_RKE = self._extend(self._together, labels_R, first, n_codes)
            self._conditional.filled = self._unconditional.filled = self._together.filled
            return hidden_RKE
        both = ((self._conditional, self._labels_B), (self._unconditional, self._null_B))
        return torch.cat([self._extend(cache, labels, first, n_codes) for cache, labels in both])

    def _extend(self, cache: Cache, labels_R: torch.Tensor, first: int, n_codes: int) -> torch.Tensor:
        """Append all codes before a step that the rows have not, with a probe for each further code of the pass."""
        begun, times = cache.filled, len(labels_R) // len(self._labels_B)
        tokens_BQ = self._codes_BT[:, max(0, begun - 1) : first]
        if n_codes > 1:
            tokens_BQ = torch.cat([tokens_BQ, *[tokens_BQ[:, -1:]] * (n_codes - 1)], 1)
        positions = self._inputs(begun, first, n_codes)
        positions = positions if times == 1 else positions.repeat(times)
        labels = labels_R if begun == 0 else None
        tokens_RQ = tokens_BQ if times == 1 else torch.cat([tokens_BQ] * times)
        return self._engine.extend(tokens_RQ, positions, cache, labels, n_codes - 1)

    def _inputs(self, begun: int, first: int, n_codes: int) -> Positions:
        """Positions of inputs ``begun`` to ``first``, and of the probes."""
        if n_codes == 1:
            return self._positions.part(begun, first + 1)
        device = self._labels_B.device
        targets = torch.arange(begun, first + n_codes, device=device)
        return self._positions.at(targets.clamp_max(first), targets)

    def _sample(self, first: int, n_codes: int, hidden_RKE: torch.Tensor) -> torch.Tensor:
        """The codes of some steps, (B, K) int64."""
        steps, n_images = slice(first, first + n_codes), len(self._labels_B)
        logits_BKV, uniforms_BK = self._logits(first, hidden_RKE), self._uniforms_BT[:, steps]
        if not self._unequal:
            logits_NV = logits_BKV.flatten(0, 1)
        elif self._positions.size_T.ndim == 1:
            logits_NV = logits_BKV.squeeze(1)[:, : int(self._engine.prior.sizes_T[first])]
        else:
            size_BK1 = self._positions.size_T[:, steps].unsqueeze(2)
            beyond_BKV = torch.arange(logits_BKV.shape[2], device=size_BK1.device) >= size_BK1
            logits_NV = logits_BKV.masked_fill(beyond_BKV, -torch.inf).flatten(0, 1)
        logits_NV, uniforms_N = logits_NV.to(uniforms_BK.device), uniforms_BK.flatten()
        codes_N = sample_codes(logits_NV, uniforms_N, self._sampling, self._filters)
        return codes_N.view(n_images, n_codes).to(self._labels_B.device)

    def _logits(self, first: int, hidden_RKE: torch.Tensor) -> torch.Tensor:
        """Guided logits, (B, K, V)."""
        n_images, scale = len(self._labels_B), self._scales[first]
        if len(hidden_RKE) == n_images or scale in (0.0, 1.0):
            return self._engine.logits(hidden_RKE[n_images:] if scale == 0.0 else hidden_RKE[:n_images])
        logits_RKV = self._engine.logits(hidden_RKE)
        return guide(logits_RKV[:n_images], logits_RKV[n_images:], scale)


class LatentStreams:
    """Random numbers of each image by position: those of image b depend on ``seeds[b]`` and the position alone.

    Args:
        seeds: of the images, or more of them.
        n_candidates: M, values of which guidance chooses one.
        n_channels: C.
    """

    def __init__(self, seeds: Sequence[int], n_candidates: int, n_channels: int) -> None:
        self._seeds, self._size = seeds, (n_candidates, 1 + n_channels)

    def at(self, cells_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers for the candidates, (B * K, M, 1 + C), and for the choice, (B * K,); float64 in [0, 1)."""
        n_candidates, width = self._size
        rows = []
        for seed, cells in zip(self._seeds, cells_BK.tolist(), strict=True):
            for cell in cells:
                generator = torch.Generator().manual_seed(derive_seed("sample a latent", seed, cell))
                rows.append(torch.rand(1 + n_candidates * width, dtype=torch.float64, generator=generator))
        numbers = torch.stack(rows)
        return numbers[:, 1:].unflatten(1, self._size), numbers[:, 0].contiguous()


class MixtureDecoder(BatchDecoder):
    """Steps through the latents of B images of a ``MixturePrior``.

    Guided latents are chosen among candidates from the conditional mixture, with weights
    (p(z | class) / p(z)) ** (scale - 1): sampling by importance resampling, as the product of powers of mixtures has no
    closed form.

    Args:
        engine, wanted, sampling, scales_T, start, most: see ``BatchDecoder``.
        streams: of the images.
    """

    def __init__(
        self,
        engine: DecodingEngine,
        wanted: Wanted,
        sampling: SamplingConfig,
        scales_T: np.ndarray,
        start: int,
        most: int,
        streams: LatentStreams,
    ) -> None:
        super().__init__(engine, wanted, sampling, scales_T, start, most)
        self._streams = streams

    def _sample(self, first: int, n_codes: int, hidden_RKE: torch.Tensor) -> torch.Tensor:
        """The latents of some steps, (B, K, C) int64."""
        prior, n_images, scale = self._engine.prior, len(self._labels_B), self._scales[first]
        assert isinstance(prior, MixturePrior)
        cells_BK = self._orders_BT[:, first : first + n_codes, 0] // prior.n_channels
        uniforms_NMS, choices_N = self._streams.at(cells_BK)
        guided = len(hidden_RKE) > n_images and scale != 1.0
        conditional = prior.mixture(hidden_RKE[:n_images].flatten(0, 1)).to(uniforms_NMS.device)
        temperature = 0.0 if self._sampling.takes_likeliest else self._sampling.temperature
        values_NMC = conditional.sample(uniforms_NMS if guided else uniforms_NMS[:, :1], temperature)
        if guided:
            unconditional = prior.mixture(hidden_RKE[n_images:].flatten(0, 1)).to(uniforms_NMS.device)
            gain_NM = conditional.log_density(values_NMC) - unconditional.log_density(values_NMC)
            chosen_N = sample_from((gain_NM * (scale - 1)).softmax(1), choices_N)
            values_NC = values_NMC[torch.arange(len(chosen_N), device=chosen_N.device), chosen_N]
        else:
            values_NC = values_NMC[:, 0]
        return prior.codes(values_NC.to(hidden_RKE.device)).unflatten(0, (n_images, n_codes))
