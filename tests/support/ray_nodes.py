"""A real Ray cluster of several nodes on this machine, apart from all others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from support.tiny_run import ROOT

NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20, "include_dashboard": False}


@contextlib.contextmanager
def ray_nodes(n_nodes: int = 2, **head: Any) -> Iterator[Any]:
    """A cluster of nodes with one CPU each, to which this process is connected; ``head`` are other settings of the
    first node.
    """
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, **head})
    for _ in range(n_nodes - 1):
        cluster.add_node(**{key: value for key, value in NODE.items() if key != "include_dashboard"})
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
