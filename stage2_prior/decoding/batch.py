"""A batch of images of a causal prior, sampled pass by pass over a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from stage2_prior.decoding.cache import Cache
from stage2_prior.decoding.engine import DecodingEngine
from stage2_prior.decoding.filters import Filters
from stage2_prior.decoding.probs import filters_for, least_race, probabilities, sample_codes, sample_from
from stage2_prior.decoding.sampling import SamplingConfig, guide
from stage2_prior.decoding.streams import GumbelStreams, LatentStreams
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
        share: 1 / guidance scale, of a prior with ``guidance_input``.
    """

    labels_B: torch.Tensor
    uniforms_BT: torch.Tensor
    known_BT: torch.Tensor
    orders_BT: torch.Tensor | None = None
    share: float = 1.0

    def take(self, images: torch.Tensor) -> Wanted:
        """Some images, by number."""
        orders_BT = None if self.orders_BT is None else self.orders_BT[images]
        uniforms_BT = self.uniforms_BT[images.to(self.uniforms_BT.device)]
        return Wanted(self.labels_B[images], uniforms_BT, self.known_BT[images], orders_BT, self.share)


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
        races: of the images, where codes are drawn by Gumbel noise; None takes the uniform numbers.
    """

    def __init__(
        self,
        engine: DecodingEngine,
        wanted: Wanted,
        sampling: SamplingConfig,
        scales_T: np.ndarray,
        start: int,
        most: int = 1,
        races: GumbelStreams | None = None,
    ) -> None:
        self._races, self._n_steps, self._guides_by_pass = races, engine.prior.n_steps, most > 1
        self._engine, self._sampling, self._scales, self._start = engine, sampling, scales_T.tolist(), start
        prior, labels_B, orders_BT = engine.prior, wanted.labels_B, wanted.orders_BT
        self._share = wanted.share
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
        self._unknown_BT, self._known_BT = self._codes_BT < 0, self._codes_BT.clone()
        self._plan_rows(most)
        self._memories: dict[int, Filters] = {}

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
        self.n_rows = memory.n_rows
        self._together = memory.rows(0, memory.n_rows)
        self._conditional = memory.rows(0, n_images)
        self._unconditional = memory.rows(n_images, 2 * n_images) if both else None

    @torch.inference_mode()
    def step(self, first: int, n_codes: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions and codes of some steps, (B, K) int64 each; to be called from ``start`` on, without gaps."""
        steps = slice(first, first + n_codes)
        if any(self._sampled[steps]):
            codes = self._sample(first, n_codes, self._advance(first, n_codes))
            self._codes_BT[:, steps] = self._with_known(first, codes)
        return self._orders_BT[:, steps].flatten(1), self._codes_BT[:, steps].flatten(1)

    @torch.inference_mode()
    def window(self, first: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``step``, for as many steps as one pass finds: (B, K), 1 <= K <= size.

        The pass takes in guesses of the codes of the window. What it samples at a step is right if all guesses before
        it are what it samples there: the first wrong guess ends what is kept, and what was sampled after it are the
        next guesses. So codes are the same as step by step (Song et al. 2021, "Accelerating feedforward
        computation via parallel nonlinear equation solving", arXiv:2002.03629, section 4, fixed-point iteration).
        """
        size = self._within(first, size)
        if size == 1 or not any(self._sampled[first : first + size]):
            return self.step(first, size if size > 1 else 1)
        steps, unguessed = slice(first, first + size), self._codes_BT[:, first : first + size] < 0
        before = self._codes_BT[:, max(0, first - 1), None].clamp_min(0).expand(-1, size)
        before = before.minimum(self._positions.size_T[..., steps] - 1)
        guesses = torch.where(unguessed, before, self._codes_BT[:, steps])
        self._codes_BT[:, steps] = guesses
        codes = self._with_known(first, self._sample(first, size, self._advance(first, size, probes=False)))
        right = (codes == guesses)[:, :-1].long().cumprod(1).sum(1)
        n_found = 1 + int(right.min())
        self._codes_BT[:, steps] = codes
        for cache in (self._together, self._conditional, self._unconditional):
            if cache is not None:
                cache.filled = min(cache.filled, first + n_found)
        found = slice(first, first + n_found)
        return self._orders_BT[:, found], self._codes_BT[:, found]

    def _within(self, first: int, size: int) -> int:
        """The size of a window that ends where the images do, or where guidance begins or ends."""
        ends = [self._n_steps, *(each for each in (self._join, self._leave) if each > first)]
        return min([size, *(end - first for end in ends)])

    def _with_known(self, first: int, codes: torch.Tensor) -> torch.Tensor:
        """Sampled codes, with those that are known as they are."""
        steps = slice(first, first + codes.shape[1])
        return (
            torch.where(self._unknown_BT[:, steps], codes, self._known_BT[:, steps])
            if any(self._mixed[steps])
            else codes
        )

    def replace(self, first: int, codes_BK: torch.Tensor) -> None:
        """Replace the codes of the first images at the latest steps."""
        codes = self._engine.prior.in_steps(codes_BK)
        steps = slice(first, first + codes.shape[1])
        if codes.shape[1] > 1 and not torch.equal(self._codes_BT[: len(codes), steps], codes):
            for cache in (self._together, self._conditional, self._unconditional):
                if cache is not None:  # what a window took in after these codes is no longer right
                    cache.filled = min(cache.filled, first + 1)
        self._codes_BT[: len(codes), steps] = codes

    def _advance(self, first: int, n_codes: int, *, probes: bool = True) -> torch.Tensor:
        """Run the engine up to the codes before a step: (R, K, E), the conditional rows first.

        Args:
            first: the step.
            n_codes: K.
            probes: whether the codes of the pass do not see each other; else each sees the guesses before it.
        """
        extend = self._extend if probes else self._extend_guessed
        guided = self._unconditional is not None and self._join < first + n_codes and first < self._leave
        if not guided:
            return extend(self._conditional, self._labels_B, first, n_codes)
        assert self._unconditional is not None
        if self._conditional.filled == self._unconditional.filled:
            self._together.filled = self._conditional.filled
            labels_R = torch.cat([self._labels_B, self._null_B])
            hidden_RKE = extend(self._together, labels_R, first, n_codes)
            self._conditional.filled = self._unconditional.filled = self._together.filled
            return hidden_RKE
        both = ((self._conditional, self._labels_B), (self._unconditional, self._null_B))
        return torch.cat([extend(cache, labels, first, n_codes) for cache, labels in both])

    def _extend_guessed(self, cache: Cache, labels_R: torch.Tensor, first: int, n_codes: int) -> torch.Tensor:
        """Append all codes that the rows have not, up to the last but one of a window."""
        begun, times = cache.filled, len(labels_R) // len(self._labels_B)
        tokens_BQ = self._codes_BT[:, max(0, begun - 1) : first + n_codes - 1]
        tokens_RQ = tokens_BQ if times == 1 else torch.cat([tokens_BQ] * times)
        positions = self._positions.part(begun, first + n_codes)
        positions = positions if times == 1 else positions.repeat(times)
        labels = labels_R if begun == 0 else None
        return self._engine.extend(tokens_RQ, positions, cache, labels, n_outputs=n_codes, share=self._share)

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
        return self._engine.extend(tokens_RQ, positions, cache, labels, n_codes - 1, share=self._share)

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
        logits_BKV, uniforms_BK = self._logits(first, n_codes, hidden_RKE), self._uniforms_BT[:, steps]
        if not self._unequal:
            logits_NV = logits_BKV.flatten(0, 1)
        elif self._positions.size_T.ndim == 1 and n_codes == 1:
            logits_NV = logits_BKV.squeeze(1)[:, : int(self._engine.prior.sizes_T[first])]
        else:
            size_K1 = self._positions.size_T[..., steps].unsqueeze(-1)
            beyond = torch.arange(logits_BKV.shape[2], device=size_K1.device) >= size_K1
            logits_NV = logits_BKV.masked_fill(beyond, -torch.inf).flatten(0, 1)
        logits_NV = logits_NV.to(uniforms_BK.device)
        filters = self._filters(len(logits_NV)) if self._sampling.filters() else None
        if self._races is None or self._sampling.takes_likeliest:
            codes_N = sample_codes(logits_NV, uniforms_BK.flatten(), self._sampling, filters)
        else:
            race_NV = self._races.at(self._orders_BT[:, steps])[:, : logits_NV.shape[1]].to(logits_NV.device)
            codes_N = least_race(probabilities(logits_NV, self._sampling, filters), race_NV)
        return codes_N.view(n_images, n_codes).to(self._labels_B.device)

    def _filters(self, n_rows: int) -> Filters:
        """Memory for as many rows of probabilities."""
        if n_rows not in self._memories:
            self._memories[n_rows] = filters_for(n_rows, self._engine.prior.vocab_size, self._uniforms_BT.device)
        return self._memories[n_rows]

    def _logits(self, first: int, n_codes: int, hidden_RKE: torch.Tensor) -> torch.Tensor:
        """Guided logits, (B, K, V)."""
        n_images, scales = len(self._labels_B), self._scales[first : first + n_codes]
        if self._guides_by_pass or len(set(scales)) == 1:
            scale: float | torch.Tensor = scales[0]
        else:
            scale = torch.tensor(scales, device=hidden_RKE.device).unsqueeze(1)
        if len(hidden_RKE) == n_images or (isinstance(scale, float) and scale in (0.0, 1.0)):
            return self._engine.logits(hidden_RKE[n_images:] if scale == 0.0 else hidden_RKE[:n_images])
        logits_RKV = self._engine.logits(hidden_RKE)
        return guide(logits_RKV[:n_images], logits_RKV[n_images:], scale)


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
