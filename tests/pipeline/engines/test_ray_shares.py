"""Workers of a stream always fit on the cluster together, also on half of its nodes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import EngineError
from pipeline.engines.ray_cluster import Node
from pipeline.engines.ray_shares import shares_of

STEPS = ("read", "compute", "finish")


def cluster(cpus: list[float], gpus: float = 0.0) -> list[Node]:
    return [Node(f"node-{i}", each, gpus) for i, each in enumerate(cpus)]


@given(
    st.lists(st.integers(1, 128), min_size=1, max_size=40), st.none() | st.integers(1, 200), st.sampled_from([1, 2, 8])
)
def test_all_workers_fit_on_any_half_of_the_nodes(cpus: list[int], workers: int | None, threads: int) -> None:
    shares = shares_of(cluster(cpus), STEPS, workers=workers, on_gpus=False, threads=threads)
    smallest_half = sorted(cpus)[: math.ceil(len(cpus) / 2)]
    room = sum(math.floor(each / shares.cpus + 1e-9) for each in smallest_half)
    assert room >= sum(shares.workers.values()) or shares.cpus == 1e-4
    assert workers in (None, shares.workers["compute"])


def test_by_default_each_gpu_has_a_worker_and_cores_are_kept_busy() -> None:
    with_gpus = shares_of(cluster([64, 64], gpus=8), STEPS, workers=None, on_gpus=True, threads=64)
    assert (with_gpus.workers["compute"], with_gpus.gpus) == (16, 1) and with_gpus.workers["read"] == 64
    on_cpus = shares_of(cluster([8, 8]), STEPS, workers=None, on_gpus=False, threads=4)
    assert (on_cpus.workers["compute"], on_cpus.gpus) == (4, 0)
    assert shares_of(cluster([2]), STEPS, workers=None, on_gpus=False, threads=8).workers["compute"] == 1


def test_what_a_cluster_does_not_have_is_refused() -> None:
    with pytest.raises(EngineError, match="the cluster has no CPUs"):
        shares_of(cluster([0, 0]), STEPS, workers=None, on_gpus=False, threads=1)
    with pytest.raises(EngineError, match=r"too few GPUs\n  found:    2\n  expected: 3 GPUs, one for each worker"):
        shares_of(cluster([8, 8], gpus=1), STEPS, workers=3, on_gpus=True, threads=1)
    with pytest.raises(EngineError, match="too few GPUs"):
        shares_of(cluster([8]), STEPS, workers=None, on_gpus=True, threads=1)
