"""Likelihood of codes in an order: the chain rule, exact for each order; a masked prior's average over orders.

With known codes chosen by a uniform number n of 0..T-1 and a random order, T times the mean over the codes that may
come next of -ln p(code | class, known codes) is on average the mean over all orders of the chain rule's -ln p(codes):
Hoogeboom et al. 2021, "Autoregressive diffusion models", arXiv:2110.02037, section 3.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import nn

from foundation.codes.spec import CodeSpec
from foundation.config import require
from foundation.images.buckets import grouped
from foundation.randomness import derive_seed
from stage2_prior.config import PriorConfig
from stage2_prior.head_loss import nll_per_code
from stage2_prior.orders import MASKED, ORDERS, Cells


class Predictor(Protocol):
    """What the likelihood needs of a prior; see ``PriorModel``."""

    config: PriorConfig
    spec: CodeSpec
    n_codes: int
    is_masked: bool
    head: nn.Linear

    def hidden(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        orders_BT: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Inputs of the head."""

    def sizes(self, tokens_BT: torch.Tensor, orders_BT: torch.Tensor | None = None) -> torch.Tensor | None:
        """Size of each code's codebook."""

    def sizes_on(self, device: torch.device) -> torch.Tensor:
        """Size of each position's codebook."""

    def in_steps(self, codes_BT: torch.Tensor) -> torch.Tensor:
        """Codes as steps take them."""

    def nll_of(self, hidden_NE: torch.Tensor, codes: torch.Tensor, size_N: torch.Tensor | None) -> torch.Tensor:
        """-ln p of what each step predicts."""


def nll_in_order(
    prior: Predictor,
    tokens_BT: torch.Tensor,
    labels_B: torch.Tensor,
    grids_B: torch.Tensor | None,
    order: str,
    seed: int,
) -> torch.Tensor:
    """See ``PriorModel.nll``; the arguments are checked but for the order."""
    any_order = prior.config.order in ("any", "masked")
    known = list(ORDERS) if any_order else ["raster"]
    fix = "train a prior of order any or masked" if order in ORDERS else None
    require(order in known, "order", order, "one of " + ", ".join(known), fix)
    if order == "raster" and not prior.is_masked:
        return _causal(prior, tokens_BT, labels_B, None, grids_B)
    if prior.is_masked and order == "random":
        return _masked_on_average(prior, tokens_BT, labels_B, grids_B, seed)
    grids = np.zeros(len(tokens_BT), np.int64) if grids_B is None else grids_B.cpu().numpy()
    orders_BT = torch.from_numpy(_orders(prior, order, grids, seed)).to(tokens_BT.device)
    if prior.is_masked:
        return _masked(prior, tokens_BT, labels_B, orders_BT, grids_B)
    return _causal(prior, tokens_BT, labels_B, orders_BT, grids_B)


def _orders(prior: Predictor, order: str, grids_B: np.ndarray, seed: int) -> np.ndarray:
    """(B, T), of images of these shapes."""
    orders_BT = np.empty((len(grids_B), prior.n_codes), np.int64)
    for grid, rows in grouped(grids_B):
        cells = Cells(prior.spec.of_grid(grid))
        orders_BT[rows] = cells.codes(ORDERS[order](cells, [derive_seed("order of", seed, i) for i in rows.tolist()]))
    return orders_BT


def nats_of_known(
    prior: Predictor, known_BT: torch.Tensor, labels_B: torch.Tensor, grids_B: torch.Tensor | None
) -> torch.Tensor:
    """-ln p(known codes | class) of each image by a prior of order any or masked, (B,) float32.

    Args:
        prior: in evaluation mode.
        known_BT: codes, int64, ``MASKED`` where one is not known.
        labels_B: class numbers, int64.
        grids_B: as of ``PriorModel.hidden``.
    """
    is_known_BT = known_BT >= 0
    orders_BT = is_known_BT.logical_not().long().argsort(dim=1, stable=True)
    if prior.is_masked:
        n_most = int(is_known_BT.sum(1).max())
        nats_BT = _masked(prior, known_BT, labels_B, orders_BT[:, :n_most], grids_B)
    else:
        nats_BT = _causal(prior, known_BT.clamp_min(0), labels_B, orders_BT, grids_B)
    return nats_BT.masked_fill(~is_known_BT, 0.0).sum(1)


def _causal(
    prior: Predictor,
    tokens_BT: torch.Tensor,
    labels_B: torch.Tensor,
    orders_BT: torch.Tensor | None,
    grids_B: torch.Tensor | None,
) -> torch.Tensor:
    """One pass over all codes. Of latents, each channel gets its share of its position."""
    hidden_NE = prior.hidden(tokens_BT, labels_B, orders_BT, grids_B).flatten(0, 1)
    predicted_BT = tokens_BT if orders_BT is None else tokens_BT.gather(1, orders_BT)
    predicted = prior.in_steps(predicted_BT)
    nll_N = prior.nll_of(hidden_NE, predicted.flatten(0, 1), prior.sizes(tokens_BT, orders_BT))
    n_channels = tokens_BT.shape[1] // predicted.shape[1]
    nll_BT = nll_N.repeat_interleave(n_channels).view_as(tokens_BT) / n_channels
    return nll_BT if orders_BT is None else torch.empty_like(nll_BT).scatter_(1, orders_BT, nll_BT)


def _masked(
    prior: Predictor,
    tokens_BT: torch.Tensor,
    labels_B: torch.Tensor,
    orders_BT: torch.Tensor,
    grids_B: torch.Tensor | None,
) -> torch.Tensor:
    """One pass for each code, given those before it; of the first codes of an order alone, the rest gets 0."""
    known_BT, nll_BT = torch.full_like(tokens_BT, MASKED), torch.zeros(tokens_BT.shape, device=tokens_BT.device)
    size_T = prior.sizes_on(tokens_BT.device)
    for position_B1 in orders_BT.split(1, dim=1):
        hidden_BTE = prior.hidden(known_BT, labels_B, grids_B=grids_B)
        hidden_BE = hidden_BTE.gather(1, position_B1.unsqueeze(2).expand(-1, -1, hidden_BTE.shape[2])).squeeze(1)
        codes_B1 = tokens_BT.gather(1, position_B1)
        nll_B = nll_per_code(
            hidden_BE, prior.head.weight, codes_B1.squeeze(1).clamp_min(0), size_T[position_B1.squeeze(1)]
        )
        nll_BT.scatter_(1, position_B1, nll_B.unsqueeze(1))
        known_BT.scatter_(1, position_B1, codes_B1)
    return nll_BT


def _masked_on_average(
    prior: Predictor, tokens_BT: torch.Tensor, labels_B: torch.Tensor, grids_B: torch.Tensor | None, seed: int
) -> torch.Tensor:
    """One pass, at a random number of known codes: T / n at each of the n codes that may come next, 0 elsewhere.

    The numbers of known codes are spread evenly over the images.
    """
    n_images, n_codes = tokens_BT.shape
    cells = Cells(prior.spec.of_grid(0))
    orders_BT = _orders(prior, "random", np.zeros(n_images, np.int64), seed)  # alike for all shapes
    first = np.random.Generator(np.random.Philox(derive_seed("known", seed))).random()
    n_known_B = ((np.arange(n_images) / max(1, n_images) + first) % 1 * n_codes).astype(np.int64)
    known_BT, next_BT = (
        torch.from_numpy(each).to(tokens_BT.device) for each in next_codes(cells, orders_BT, n_known_B)
    )
    hidden_BTE = prior.hidden(tokens_BT.masked_fill(~known_BT, MASKED), labels_B, grids_B=grids_B)
    size_N = prior.sizes(tokens_BT)
    nll_n = nll_per_code(
        hidden_BTE[next_BT],
        prior.head.weight,
        tokens_BT[next_BT],
        None if size_N is None else size_N[next_BT.flatten()],
    )
    weight_B1 = n_codes / next_BT.sum(1, keepdim=True).float()
    nll_BT = torch.zeros(tokens_BT.shape, device=tokens_BT.device).masked_scatter_(next_BT, nll_n)
    return nll_BT * weight_B1


def next_codes(cells: Cells, orders_BT: np.ndarray, n_known_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first codes of orders, and the codes that may come next: the next depth of a cell that is begun, else the
    outermost codes of all cells that are not.

    Returns:
        known, next: (B, T) bool.
    """
    rank_BT = np.empty_like(orders_BT)
    np.put_along_axis(rank_BT, orders_BT, np.arange(orders_BT.shape[1])[None], 1)
    known_BT = rank_BT < n_known_B[:, None]
    depth_B = cells.depth_T[np.take_along_axis(orders_BT, n_known_B[:, None], 1)[:, 0]]
    begun_B1 = depth_B[:, None] > 0
    next_BT = np.where(begun_B1, rank_BT == n_known_B[:, None], ~known_BT & (cells.depth_T == 0))
    return known_BT, next_BT
