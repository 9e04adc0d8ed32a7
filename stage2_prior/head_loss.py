"""Cross entropy of codes under the head, in groups of rows, without the logits of all codes at once.

Each group's loss and its share of the gradients of hidden states and head are computed while its logits are there, in
the forward pass, so that no product is computed twice. (Leaving the logits out is as in Wijmans et al. 2024,
arXiv:2411.09009, which computes them again in the backward pass.) With p = softmax(logits), the gradient of the sum of
nll + z * lse^2 to the logits is p * (1 + 2 z lse) - onehot; smoothed, onehot is (1 - s) onehot + s / K over the K
possible codes. It overwrites the logits, a block of rows at a time that fits the cache, where softmax and loss are
float32. (torch's chunked ``linear_cross_entropy`` does the like, but has no z-loss and no codebooks of unequal size,
and takes float32 products under autocast.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from foundation.training.linear import linear, prefers_onednn, product
from stage2_prior.cpu_kernels import product_type, sum_type

_GROUP_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""logits that exist at once: more cost memory, fewer add to the head's gradient more often"""
_BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 512 << 20}
"""float32 logits worked on at once: on a CPU they should fit the cache of a core"""


class HeadLoss(NamedTuple):
    """Means over the codes, float32 scalars.

    Attributes:
        loss: nll + z_loss * squared_lse, of which smoothing replaces its share of nll by the mean over all possible
            codes; the only one with a gradient.
        nll: negative log-likelihood, nats.
        squared_lse: the square of the logarithm of the sum of exponentials of the logits.
    """

    loss: torch.Tensor
    nll: torch.Tensor
    squared_lse: torch.Tensor


class Terms(NamedTuple):
    """Weights of what the loss adds to the likelihood."""

    z_loss: float
    smoothing: float


_LIKELIHOOD = Terms(0.0, 0.0)


def head_loss(
    hidden_NE: torch.Tensor,
    weight_VE: torch.Tensor,
    tokens_N: torch.Tensor,
    size_N: torch.Tensor | None = None,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    trained_NE: torch.Tensor | None = None,
) -> HeadLoss:
    """Mean cross entropy of ``softmax(hidden @ weight.T)``; its gradients are computed along with it.

    Products run in autocast's type where autocast is on.

    Args:
        hidden_NE: inputs of the head.
        weight_VE: the head.
        tokens_N: codes, int64.
        size_N: for each code, the size of its codebook, int64: the rest of the V is impossible. None: all are possible.
        z_loss: weight of the mean squared logarithm of the sum of exponentials (Chowdhery et al. 2022,
            arXiv:2204.02311, section 5).
        smoothing: share of each code's probability that its target spreads evenly over all possible codes (Szegedy et
            al. 2016, arXiv:1512.00567, section 7).
        trained_NE: the part of the inputs whose logits train the head, where the others are constants; None takes all.
    """
    kind, wanted = product_type(hidden_NE), torch.is_grad_enabled()
    given = hidden_NE, weight_VE, tokens_N, size_N, Terms(z_loss, smoothing), kind, wanted
    return HeadLoss(*_HeadLoss.apply(*given, None if trained_NE is None else trained_NE.detach()))


@torch.no_grad()
def nll_per_code(
    hidden_NE: torch.Tensor, weight_VE: torch.Tensor, tokens_N: torch.Tensor, size_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Negative log-likelihoods without gradients, (N,) float32, nats; arguments as of ``head_loss``."""
    kind = product_type(hidden_NE)
    hidden_NE, weight_VE = hidden_NE.to(kind), weight_VE.to(kind)
    rows_3N, groups = _empty_rows(hidden_NE), _groups(hidden_NE, weight_VE)
    space_MV = hidden_NE.new_empty(groups[0].stop, len(weight_VE))
    with torch.autocast(hidden_NE.device.type, enabled=False):
        for group in groups:
            logits_MV = _logits(hidden_NE[group], weight_VE, _part(size_N, group), space_MV)
            _to_gradients_(logits_MV, tokens_N[group], rows_3N[:, group])
    return rows_3N[0].float()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        tokens_N: torch.Tensor,
        size_N: torch.Tensor | None,
        terms: Terms,
        kind: torch.dtype,
        wanted: bool,
        trained_NE: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden, weight, rows_3N = hidden_NE.to(kind), weight_VE.to(kind), _empty_rows(hidden_NE)
        trained = hidden if trained_NE is None else trained_NE.to(kind)
        to_hidden, to_weight, groups = torch.empty_like(hidden), None, _groups(hidden, weight)
        space_MV = hidden.new_empty(groups[0].stop, len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for group in groups:
                sizes_M = _part(size_N, group)
                logits_MV = _logits(hidden[group], weight, sizes_M, space_MV)
                _to_gradients_(logits_MV, tokens_N[group], rows_3N[:, group], sizes_M, terms, wanted)
                if wanted:
                    to_hidden[group] = linear(logits_MV, weight.T)
                    share = linear(logits_MV.T, trained[group].T)
                    to_weight = share.to(rows_3N.dtype) if to_weight is None else to_weight.add_(share)
        ctx.types, ctx.gradients = (hidden_NE.dtype, weight_VE.dtype), (to_hidden, to_weight) if wanted else None
        nll, squared_lse = rows_3N[0].mean(), rows_3N[1].square().mean()
        ctx.mark_non_differentiable(nll, squared_lse)
        loss = nll + terms.z_loss * squared_lse
        return loss + terms.smoothing * (rows_3N[2].mean() - nll) if terms.smoothing else loss, nll, squared_lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of head_loss are handed over, not kept: take them once")
        (to_hidden, to_weight), ctx.gradients = ctx.gradients, None
        scale = gradient / len(to_hidden)
        return to_hidden.to(ctx.types[0]).mul_(scale), to_weight.to(ctx.types[1]).mul_(scale), *[None] * 6


def _empty_rows(hidden_NE: torch.Tensor) -> torch.Tensor:
    """Memory for each row (code), (3, N): nll, lse and, where the loss is smoothed, the mean nll of possible codes."""
    return hidden_NE.new_empty((3, len(hidden_NE)), dtype=sum_type(hidden_NE.dtype))


def _to_gradients_(
    logits_MV: torch.Tensor,
    tokens_M: torch.Tensor,
    rows_3M: torch.Tensor,
    size_M: torch.Tensor | None = None,
    terms: Terms = _LIKELIHOOD,
    wanted: bool = False,
) -> None:
    """Fill in the rows; replace the logits by the gradients to them, if those are ``wanted``."""
    z_loss, smoothing = terms
    n_rows = max(1, _BLOCK_BYTES.get(logits_MV.device.type, _BLOCK_BYTES["cuda"]) // (4 * logits_MV.shape[1]))
    space = logits_MV.new_empty((2, min(n_rows, len(logits_MV)), logits_MV.shape[1]), dtype=rows_3M.dtype)
    for start in range(0, len(logits_MV), n_rows):
        here = slice(start, start + n_rows)
        own_M1 = tokens_M[here].unsqueeze(1)
        logits, log_probs = space[:, : len(own_M1)]
        torch.log_softmax(logits.copy_(logits_MV[here]), 1, out=log_probs)
        own_log_M1 = log_probs.gather(1, own_M1)
        lse_M1 = logits[:, :1] - log_probs[:, :1]
        rows_3M[0, here], rows_3M[1, here] = -own_log_M1.squeeze(1), lse_M1.squeeze(1)
        target = None
        if smoothing:
            target = _even_target(log_probs, _part(size_M, here), smoothing)
            rows_3M[2, here] = log_probs.mul(target).nan_to_num_(nan=0.0).sum(1) / -smoothing
        if not wanted:
            continue
        to_own_M1 = own_log_M1.expm1()
        probs = log_probs.exp_()
        if z_loss:
            to_own_M1 += 2 * z_loss * lse_M1 * own_log_M1.exp()
            probs.mul_(1 + 2 * z_loss * lse_M1)
        probs.scatter_(1, own_M1, to_own_M1)
        if target is not None:
            probs.sub_(target).scatter_add_(1, own_M1, torch.full_like(own_log_M1, smoothing))
        logits_MV[here] = probs


def _even_target(like_MV: torch.Tensor, size_M: torch.Tensor | None, smoothing: float) -> torch.Tensor:
    """What smoothing adds to the target of each code, (M, V) or (1, 1) for all: s / K, and 0 for impossible codes."""
    if size_M is None:
        return like_MV.new_full((1, 1), smoothing / like_MV.shape[1])
    possible_MV = torch.arange(like_MV.shape[1], device=like_MV.device) < size_M.unsqueeze(1)
    return possible_MV.to(like_MV.dtype).mul_(smoothing).div_(size_M.unsqueeze(1))


def _groups(hidden_NE: torch.Tensor, weight_VE: torch.Tensor) -> list[slice]:
    """Ranges of rows, of which the first is the longest."""
    budget = _GROUP_BYTES.get(hidden_NE.device.type, _GROUP_BYTES["cuda"])
    n_rows, n_all = max(1, budget // (hidden_NE.element_size() * len(weight_VE))), len(hidden_NE)
    return [slice(start, min(start + n_rows, n_all)) for start in range(0, n_all, n_rows)]


def _logits(
    hidden_ME: torch.Tensor, weight_VE: torch.Tensor, size_M: torch.Tensor | None, space_MV: torch.Tensor
) -> torch.Tensor:
    """(M, V), where torch computes it the first rows of ``space_MV``, because fresh memory costs a CPU as much as its
    product; -inf from each row's size on.
    """
    logits_MV = space_MV[: len(hidden_ME)]
    if prefers_onednn(hidden_ME, weight_VE):
        logits_MV = product(hidden_ME, weight_VE)
    else:
        torch.mm(hidden_ME, weight_VE.T, out=logits_MV)
    if size_M is not None:
        beyond_MV = torch.arange(len(weight_VE), device=weight_VE.device) >= size_M.unsqueeze(1)
        logits_MV.masked_fill_(beyond_MV, -torch.inf)
    return logits_MV


def _part(size_N: torch.Tensor | None, here: slice) -> torch.Tensor | None:
    return None if size_N is None else size_N[here]
