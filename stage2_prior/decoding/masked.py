"""A batch of images of a masked prior, sampled in passes over all codes at once.

Sources: Chang et al. 2022, "MaskGIT", arXiv:2202.04200, section 3.3, for the cosine schedule and the choice by
confidence; its published code for the noise on confidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from stage2_prior.decoding.batch import Wanted
from stage2_prior.decoding.probs import filters_for, sample_codes
from stage2_prior.decoding.sampling import SamplingConfig, guide
from stage2_prior.decoding.streams import PassStreams
from stage2_prior.orders import Cells, pass_sizes
from stage2_prior.prior import PriorModel

_TINY = 1e-20
DEFAULT_PASSES = 16
"""in order of confidence"""


class MaskedDecoder:
    """Passes over B images.

    Args:
        prior: masked, in evaluation mode.
        grid: of the images.
        wanted: the images, with the orders of their codes; without, codes are chosen by confidence.
        streams: of the images, or what gives the same number of them.
        sampling: temperature, filters, and the number of passes.
        scales_T: of guidance by the number of known codes, from ``guidance_scales``.
    """

    def __init__(
        self,
        prior: PriorModel,
        grid: int,
        wanted: Wanted,
        streams: PassStreams,
        sampling: SamplingConfig,
        scales_T: np.ndarray,
    ) -> None:
        self._prior, self._streams, self._sampling, self._scales_T = prior, streams, sampling, scales_T
        self._share = wanted.share
        self._labels_B, self._codes_BT = wanted.labels_B, wanted.known_BT.clone()
        self._grids_B = torch.full_like(self._labels_B, grid) if prior.n_grids > 1 else None
        self._cells, device = Cells(prior.spec.of_grid(grid)), self._labels_B.device
        starts_P = np.flatnonzero(self._cells.depth_T == 0)
        self._start_P = torch.from_numpy(starts_P).to(device)
        self._depth_P = torch.from_numpy(np.diff(starts_P, append=prior.n_codes)).to(device)
        self._unequal, self._ordered = prior.sizes(wanted.known_BT[:1]) is not None, wanted.orders_BT is not None
        if wanted.orders_BT is not None:
            cell_T, depth_T = (torch.from_numpy(each).to(device) for each in (self._cells.cell_T, self._cells.depth_T))
            outermost_BT = depth_T[wanted.orders_BT] == 0
            self._cell_orders_BP = cell_T[wanted.orders_BT[outermost_BT]].view(len(self._labels_B), -1)
        self._device = wanted.uniforms_BT.device  # where codes are sampled
        rows = len(self._labels_B) * self._cells.n_cells
        self._filters = filters_for(rows, prior.vocab_size, self._device) if sampling.filters() else None

    @torch.inference_mode()
    def passes(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The positions and codes of each pass, (B, K) int64; an image with fewer than K has the last again."""
        n_passes, open_BP = self._sampling.passes, self._open_cells()
        n_passes = n_passes or (None if self._ordered else min(DEFAULT_PASSES, self._cells.n_cells))
        sizes = [pass_sizes(n, n_passes) for n in open_BP.sum(1).tolist()]
        for number in range(max(map(len, sizes), default=0)):
            counts = [each[number] if number < len(each) else 0 for each in sizes]
            to_come = [max(0.0, 1 - (number + 1) / max(1, len(each))) for each in sizes]
            codes_BT, noise_BT = self._streams.next()
            chosen = self._first_cells(counts) if self._ordered else open_BP.nonzero(as_tuple=True)
            for depth in range(self._cells.depth):
                images_N, cells_N = (each[self._depth_P[chosen[1]] > depth] for each in chosen)
                if not len(images_N):
                    continue
                positions_N = self._start_P[cells_N] + depth
                drawn_N, surprise_N = self._sample(images_N, positions_N, codes_BT)
                if depth == 0 and not self._ordered:
                    noise_N = self._noise(noise_BT, images_N, positions_N, to_come)
                    kept = self._most_confident(images_N, noise_N - surprise_N, counts)
                    chosen = tuple(each[kept] for each in chosen)
                    images_N, positions_N, drawn_N = images_N[kept], positions_N[kept], drawn_N[kept]
                self._codes_BT[images_N, positions_N] = drawn_N
                yield self._report(images_N, positions_N)
            open_BP[chosen] = False

    @torch.inference_mode()
    def replace(self, positions_BK: torch.Tensor, codes_BK: torch.Tensor) -> None:
        """Replace the codes of the latest pass."""
        self._codes_BT.scatter_(1, positions_BK, codes_BK)

    def _open_cells(self) -> torch.Tensor:
        """(B, P) bool, the cells with codes to sample."""
        unknown_BT = (self._codes_BT < 0).float()
        open_BP = unknown_BT.new_zeros(len(unknown_BT), self._cells.n_cells)
        return open_BP.index_add_(1, torch.from_numpy(self._cells.cell_T).to(unknown_BT.device), unknown_BT) > 0

    def _first_cells(self, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The next cells of each image in its order: numbers of images and cells, (N,) each."""
        open_BP = self._open_cells().gather(1, self._cell_orders_BP)
        rank_BP = open_BP.long().cumsum(1)
        most_B1 = torch.tensor(counts, device=open_BP.device).unsqueeze(1)
        images_N, places_N = (open_BP & (rank_BP <= most_B1)).nonzero(as_tuple=True)
        return images_N, self._cell_orders_BP[images_N, places_N]

    def _sample(
        self, images_N: torch.Tensor, positions_N: torch.Tensor, uniforms_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes at positions, int64, known ones as they are, and -ln of their probability before filters, float32."""
        logits_NV = self._logits(images_N, positions_N)
        if self._unequal:
            size_N1 = self._prior.sizes_on(logits_NV.device)[positions_N].unsqueeze(1)
            beyond_NV = torch.arange(logits_NV.shape[1], device=logits_NV.device) >= size_N1
            logits_NV = logits_NV.masked_fill(beyond_NV, -torch.inf)
        on_cpu = images_N.cpu(), positions_N.cpu()
        uniforms_N = uniforms_BT[on_cpu].to(self._device)
        drawn_N = sample_codes(logits_NV.to(self._device), uniforms_N, self._sampling, self._filters)
        drawn_N = drawn_N.to(logits_NV.device)
        known_N = self._codes_BT[images_N, positions_N]
        drawn_N = torch.where(known_N < 0, drawn_N, known_N)
        return drawn_N, F.cross_entropy(logits_NV, drawn_N, reduction="none")

    def _logits(self, images_N: torch.Tensor, positions_N: torch.Tensor) -> torch.Tensor:
        """Guided logits, (N, V) float32."""
        n_known_B = (self._codes_BT >= 0).sum(1).clamp_max(self._prior.n_codes - 1)
        scale_B = torch.from_numpy(self._scales_T).to(n_known_B.device)[n_known_B].float()
        conditional_NV = self._logits_of(self._labels_B, images_N, positions_N)
        if bool((scale_B == 1).all()):
            return conditional_NV
        null_B = torch.full_like(self._labels_B, self._prior.null_class)
        unconditional_NV = self._logits_of(null_B, images_N, positions_N)
        return guide(conditional_NV, unconditional_NV, scale_B[images_N].unsqueeze(1))

    def _logits_of(self, labels_B: torch.Tensor, images_N: torch.Tensor, positions_N: torch.Tensor) -> torch.Tensor:
        shares_B = None
        if self._share != 1:
            shares_B = torch.where(labels_B != self._prior.null_class, self._share, 1.0)
        hidden_BTE, _ = self._prior.hidden_states(self._codes_BT, labels_B, None, self._grids_B, (), shares_B)
        return self._prior.head(hidden_BTE[images_N, positions_N]).float()

    def _noise(
        self, noise_BT: torch.Tensor, images_N: torch.Tensor, positions_N: torch.Tensor, to_come: Sequence[float]
    ) -> torch.Tensor:
        """What is added to the logarithm of confidence, (N,) float32."""
        gumbel_N = -(-noise_BT[images_N.cpu(), positions_N.cpu()].clamp_min(_TINY).log()).clamp_min(_TINY).log()
        scale_B = self._sampling.confidence_noise * torch.tensor(to_come, dtype=torch.float64)
        return (gumbel_N * scale_B[images_N.cpu()]).float().to(images_N.device)

    def _most_confident(
        self, images_N: torch.Tensor, confidence_N: torch.Tensor, counts: Sequence[int]
    ) -> torch.Tensor:
        """The candidates with the most confidence of each image, as many as ``counts``: (N,) bool."""
        by_confidence = confidence_N.argsort(descending=True, stable=True)
        order = by_confidence[images_N[by_confidence].argsort(stable=True)]  # image by image
        n_B = torch.bincount(images_N, minlength=len(counts))
        first_B = n_B.cumsum(0) - n_B
        rank_N = torch.empty_like(order)
        rank_N[order] = torch.arange(len(order), device=order.device) - first_B[images_N[order]]
        return rank_N < torch.tensor(counts, device=rank_N.device)[images_N]

    def _report(self, images_N: torch.Tensor, positions_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions and codes of a pass, (B, K): of an image with fewer than K the last again, or a known one."""
        n_B = torch.bincount(images_N, minlength=len(self._labels_B))
        within_N = torch.arange(len(images_N), device=images_N.device) - (n_B.cumsum(0) - n_B)[images_N]
        known_B1 = (self._codes_BT >= 0).long().argmax(1, keepdim=True)
        positions_BK = known_B1.repeat(1, int(n_B.max()))
        positions_BK[images_N, within_N] = positions_N
        last_BK = torch.arange(positions_BK.shape[1], device=n_B.device).expand_as(positions_BK)
        positions_BK = positions_BK.gather(1, last_BK.minimum((n_B - 1).clamp_min(0).unsqueeze(1)))
        return positions_BK, self._codes_BT.gather(1, positions_BK)
