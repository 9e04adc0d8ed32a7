"""Muon: steps along the momentum of a matrix with its singular values brought near 1.

Sources: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (momentum, and the Newton-Schulz
iteration with its coefficients); Liu et al. 2025, arXiv:2502.16982, Eq. 4 (steps as large as AdamW's, decoupled decay).

torch has a Muon since 2.9, with which this one is tested to agree. This one also takes kernels and stacked matrices,
parameters that processes share (FSDP2), and steps of which the device decides whether they are taken; it works with
older versions of torch, and in float32 where bf16 is slow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from foundation.training.parallel import full_like, local_shard, share_like

_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_EPSILON = 1e-7
_RMS = 0.2  # of AdamW's steps, about
P = TypeVar("P", bound=torch.Tensor)
_BATCH_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}
"""matrices in one product: on a CPU more of them are no faster"""


def hidden_matrix(parameter: P, n_stacked: int = 1) -> P:
    """Tag a parameter as one that Muon may train, where it is created.

    Args:
        parameter: (rows, columns), or a kernel (rows, ...), whose other axes count as columns.
        n_stacked: matrices of equal height that it holds, one below the other. Each is a map of its own, and gets a
            step of its own.
    """
    parameter.n_stacked = n_stacked  # type: ignore[attr-defined]
    return parameter


def is_hidden_matrix(parameter: torch.Tensor) -> bool:
    """Whether the parameter is tagged as a hidden matrix."""
    return hasattr(parameter, "n_stacked")


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for parameters tagged by ``hidden_matrix``.

    With M the momentum and G the gradient of a (rows, columns) matrix W, a step is
    M = m M + (1 - m) G; W = (1 - lr decay) W - 0.2 sqrt(max(rows, columns)) lr orthogonalized(m M + (1 - m) G).

    Shared parameters keep shares of the momentum; every process joins whole matrices and computes all steps. An
    attribute ``found_inf``, a float scalar on the device, skips the step where it is 1, as of torch's fused AdamW.

    Args:
        parameters: tagged, on one device; shared ones by all or none.
        learning_rate: as of AdamW.
        momentum: m, 0 to below 1.
        weight_decay: decoupled.
        arithmetic: type in which singular values are brought near 1: bf16 or float32.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        arithmetic: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})
        self.arithmetic = arithmetic

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every parameter that has a gradient; returns what ``closure`` returns, which is called first."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        found_inf = getattr(self, "found_inf", None)
        taken = None if found_inf is None else 1 - found_inf
        for group in self.param_groups:
            for batch in _batches(each for each in group["params"] if each.grad is not None):
                directions = [self._direction(each, group["momentum"], taken) for each in batch]
                for parameter, step in zip(batch, _steps(batch, directions, self.arithmetic), strict=True):
                    _move(parameter, step, group["lr"], group["weight_decay"], taken)
        return result

    def _direction(self, parameter: torch.Tensor, momentum: float, taken: torch.Tensor | None) -> torch.Tensor:
        """Move the momentum; returns it, moved once more (Nesterov), whole."""
        assert parameter.grad is not None
        gradient, state = local_shard(parameter.grad), self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        average = local_shard(state["momentum"])
        if taken is None:
            average.lerp_(gradient, 1 - momentum)
        else:
            gradient = torch.where(taken > 0, gradient, 0)  # what is not finite stays so under a factor of 0
            average.lerp_(gradient, (1 - momentum) * taken)
        return full_like(gradient.lerp(average, momentum), parameter)


def orthogonalized(matrices_NRC: torch.Tensor) -> torch.Tensor:
    """U V' of each matrix U S V', nearly: its singular values become 0.7 to 1.2, very small ones less.

    Five Newton-Schulz iterations X = a X + (b X X' + c (X X')^2) X from X / |X|, in the type of the argument.

    Args:
        matrices_NRC: R <= C, which costs least.
    """
    norms_N11 = torch.linalg.vector_norm(matrices_NRC, dim=(1, 2), keepdim=True)
    x_NRC = matrices_NRC / norms_N11.clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram_NRR = x_NRC @ x_NRC.mT
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=_B, alpha=_C)
        x_NRC = torch.baddbmm(x_NRC, factor_NRR, x_NRC, beta=_A)
    return x_NRC


def _stack(tensor: torch.Tensor, n_stacked: int) -> torch.Tensor:
    """(n_stacked, R, C) wide matrices of a parameter's shape."""
    matrices_NRC = tensor.flatten(1).unflatten(0, (n_stacked, -1))
    return matrices_NRC.mT if matrices_NRC.shape[1] > matrices_NRC.shape[2] else matrices_NRC


def _unstack(matrices_NRC: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of ``_stack``."""
    n_rows = shape[0] // len(matrices_NRC)
    turned = matrices_NRC.shape[1:] != (n_rows, shape.numel() // shape[0])
    return (matrices_NRC.mT if turned else matrices_NRC).reshape(shape)


def _wide_shape(parameter: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of each matrix, the fewer first."""
    n_rows = parameter.shape[0] // parameter.n_stacked  # type: ignore[attr-defined]
    n_columns = parameter.numel() // parameter.shape[0]
    return min(n_rows, n_columns), max(n_rows, n_columns)


def _batches(parameters: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Parameters whose matrices have one shape, a few at a time, in an order that depends on shapes alone."""
    by_shape: defaultdict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
    for each in parameters:
        by_shape[_wide_shape(each)].append(each)
    for some in by_shape.values():
        budget, batch, n_bytes = _BATCH_BYTES.get(some[0].device.type, _BATCH_BYTES["cuda"]), list[torch.Tensor](), 0
        for each in some:
            if batch and n_bytes + each.numel() * each.element_size() > budget:
                yield batch
                batch, n_bytes = [], 0
            batch.append(each)
            n_bytes += each.numel() * each.element_size()
        yield batch


def _steps(
    parameters: list[torch.Tensor], directions: list[torch.Tensor], arithmetic: torch.dtype
) -> Iterator[torch.Tensor]:
    """The step of each parameter at a learning rate of 1: whole, of the parameter's shape."""
    counts: list[int] = [each.n_stacked for each in parameters]  # type: ignore[attr-defined]
    stacks = [_stack(each, n) for each, n in zip(directions, counts, strict=True)]
    made_NRC = orthogonalized(torch.cat(stacks).to(arithmetic))
    scale = _RMS * made_NRC.shape[2] ** 0.5
    for parameter, matrices in zip(parameters, made_NRC.split(counts), strict=True):
        yield _unstack(matrices, parameter.shape).to(parameter.dtype).mul_(scale)


def _move(
    parameter: torch.Tensor, step: torch.Tensor, rate: float, weight_decay: float, taken: torch.Tensor | None
) -> None:
    own, share = local_shard(parameter), share_like(step, parameter)
    if taken is None:
        own.mul_(1 - rate * weight_decay).add_(share, alpha=-rate)
    else:
        own.mul_(1 - rate * weight_decay * taken).sub_(share * (rate * taken))
