"""Codebook statistics over all processes; with one process each function returns its argument."""

from __future__ import annotations

import torch
from torch import distributed


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over processes, the same everywhere."""
    if _several():
        distributed.all_reduce(tensor)
    return tensor


def averaged(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over processes, the same everywhere; without a gradient."""
    return summed(tensor.clone()) / distributed.get_world_size() if _several() else tensor


def shared_mean(mean: torch.Tensor) -> torch.Tensor:
    """The mean over processes of each one's mean over equally many rows, while gradients are recorded.

    The gradient that reaches a process's own mean is that of the shared one as a whole; averaged over processes, as
    data-parallel training does, it is the gradient of one process with all rows. Without gradients, when processes
    may do different work, the argument comes back.
    """
    return mean + (averaged(mean.detach()) - mean.detach()) if torch.is_grad_enabled() else mean


def gathered(rows_ND: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, (world * N, D); every process must bring equally many."""
    if not _several():
        return rows_ND
    parts = [torch.empty_like(rows_ND) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows_ND.contiguous())
    return torch.cat(parts)


def same_everywhere(tensor: torch.Tensor) -> torch.Tensor:
    """Process 0's tensor."""
    if _several():
        distributed.broadcast(tensor, src=0)
    return tensor
