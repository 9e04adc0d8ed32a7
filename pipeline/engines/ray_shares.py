"""How many workers each step of a stream gets of a Ray cluster, and how much of a CPU each asks for.

Ray places an actor where what it asks for is free. All actors of a stream must run at the same time, or one step waits
for another for ever; so each asks for a small fraction of a CPU, so small that all fit on half of the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from foundation.errors import EngineError
from pipeline.engines.ray_cluster import Node

_READERS_PER_GPU = 4
_SMALLEST = 1e-4
"""of a CPU, that Ray can count"""


@dataclass(frozen=True)
class Shares:
    """Workers of a stream.

    Attributes:
        workers: step => number.
        cpus: that each worker asks for.
        gpus: that each worker of ``compute`` asks for, 0 or 1.
    """

    workers: Mapping[str, int]
    cpus: float
    gpus: int

    def text(self) -> str:
        """In words."""
        each = ", ".join(f"{n} to {step}" for step, n in self.workers.items())
        on_gpus = f", {self.workers['compute']} GPUs" if self.gpus else ""
        return f"{each}: {sum(self.workers.values())} times {self.cpus:g} CPU{on_gpus}"


def shares_of(
    nodes: Sequence[Node], steps: Collection[str], *, workers: int | None, on_gpus: bool, threads: int
) -> Shares:
    """Share out a cluster.

    Args:
        nodes: that are alive.
        steps: of the stream: read, compute, finish.
        workers: of ``compute``; None takes one for each GPU, or without GPUs as many as the cores can keep busy.
        on_gpus: whether each of them needs a GPU.
        threads: that each of them computes with, where it has no GPU.

    Raises:
        EngineError: the cluster does not have what is needed.
    """
    with_cpus = sorted(each.cpus for each in nodes if each.cpus > 0)
    cpus, gpus = sum(with_cpus), int(sum(each.gpus for each in nodes))
    fix = "start nodes with CPUs (ray start --num-cpus), or give another --address"
    EngineError.unless(cpus > 0, "the cluster has no CPUs", field="--engine", found="0 CPUs", fix=fix)
    if on_gpus:
        wanted, fix = workers or max(1, gpus), "give fewer --workers, add nodes with GPUs, or compute on CPUs"
        expected = f"{wanted} GPUs, one for each worker"
        enough = gpus >= wanted
        EngineError.unless(
            enough, "the cluster has too few GPUs", field="--workers", found=gpus, expected=expected, fix=fix
        )
        others = min(math.ceil(cpus), _READERS_PER_GPU * wanted)
    else:
        wanted = workers or max(1, sum(max(1, int(each) // threads) for each in with_cpus))
        others = math.ceil(min(cpus, wanted) / 2)
    numbers = {step: wanted if step == "compute" else max(1, others) for step in steps}
    survivors = with_cpus[: math.ceil(len(with_cpus) / 2)]
    fraction = sum(survivors) / (sum(numbers.values()) + len(survivors))
    return Shares(numbers, max(_SMALLEST, math.floor(min(1.0, fraction) / _SMALLEST) * _SMALLEST), int(on_gpus))
