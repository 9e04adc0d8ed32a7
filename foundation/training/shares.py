"""An evaluation shared out over processes: chunks of a fixed order, read ahead, results joined in that order.

The chunks, and which examples each holds, do not depend on the number of processes, and sums run over the joined
results: 1, 2 or 3 processes compute the same figures, to the last bit where their kernels give the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import distributed

from foundation.randomness import uniforms
from foundation.training.parallel import all_gather_rows, all_reduce_sum

T = TypeVar("T")


def chosen_examples(n_examples: int, limit: int | None) -> np.ndarray:
    """Which examples an evaluation takes: (N,) int64 in ascending order, the same for equal arguments.

    Args:
        n_examples: how many there are.
        limit: most to take, those with the smallest hash of their position; None takes all.
    """
    positions = np.arange(n_examples)
    if limit is None or limit >= n_examples:
        return positions
    keys_N = uniforms(positions, np.zeros_like(positions), 0, "evaluation")
    return np.sort(np.argsort(keys_N, kind="stable")[:limit])


@dataclass(frozen=True)
class Share:
    """A process's part of an evaluation.

    Attributes:
        rank: this process, from 0.
        world: number of processes; 1 scores everything here.
        device: of the tensors that processes exchange.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable

    @classmethod
    def of_processes(cls, device: torch.device) -> Share:
        """This process's share among all processes of the training."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(device=device)
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    def chunks(self, n_examples: int, size: int) -> list[slice]:
        """The chunks of ``size`` examples that this process scores: every ``world``-th; the last one may be shorter."""
        return [slice(i, min(i + size, n_examples)) for i in range(self.rank * size, n_examples, self.world * size)]

    def joined(self, values: np.ndarray) -> np.ndarray:
        """An array with the values of all processes; each has zeros where it computed nothing."""
        if self.world == 1:
            return values
        return all_reduce_sum(torch.from_numpy(np.array(values)).to(self.device)).cpu().numpy()

    def rows_of_all(self, rows_ND: np.ndarray) -> list[np.ndarray]:
        """The rows of each process, of which each may bring another number; in the order of processes."""
        if self.world == 1:
            return [rows_ND]
        lengths = all_gather_rows(torch.tensor([[len(rows_ND)]], device=self.device)).flatten().tolist()
        padded_MD = np.zeros((max(lengths), rows_ND.shape[1]), rows_ND.dtype)
        padded_MD[: len(rows_ND)] = rows_ND
        parts = all_gather_rows(torch.from_numpy(padded_MD).to(self.device)).cpu().numpy()
        return [part[:n] for part, n in zip(np.split(parts, self.world), lengths, strict=True)]

    def decided(self, value: float) -> float:
        """Process 0's value."""
        return float(self.joined(np.array([value if self.rank == 0 else 0.0]))[0])


def read_ahead(read: Callable[[slice], T], chunks: Sequence[slice]) -> Iterator[tuple[slice, T]]:
    """Each chunk with what ``read`` returns for it; the next one is read in a thread while the caller works on one."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(read, each) for each in chunks[:1]]
        for i, chunk in enumerate(chunks):
            found = ahead.pop().result()
            ahead = [reader.submit(read, each) for each in chunks[i + 1 : i + 2]]
            yield chunk, found
