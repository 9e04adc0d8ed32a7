"""The engine that a command asks for, while its work lasts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from foundation.errors import ConfigError
from pipeline.engines.config import EngineConfig
from pipeline.engines.stream import Engine


@contextlib.contextmanager
def open_engine(config: EngineConfig, part: str | None = None) -> Iterator[Engine | None]:
    """The engine, connected while the context lasts; None for this process alone.

    Args:
        config: as it was asked for.
        part: share of the work that this process was asked to do with ``--part``; only without an engine.

    Raises:
        ConfigError: Ray is not installed, its cluster does not answer, or several processes were started to use it.
    """
    if config.engine == "local":
        yield None
        return
    fix = "leave it out: the engine shares out the work"
    ConfigError.unless(part is None, "has no effect with --engine ray", field="--part", found=part, fix=fix)
    require_one_process()
    from pipeline.engines.ray_cluster import ray_cluster
    from pipeline.engines.ray_data import RayEngine

    with ray_cluster(config.address):
        yield RayEngine(config.workers)


def require_one_process() -> None:
    """Refuse an engine in each of several processes.

    Raises:
        ConfigError: this process was started with others.
    """
    n_processes = os.environ.get("WORLD_SIZE", "1")
    what, fix = "is for one process, which Ray's workers work for", "start the command without accelerate launch"
    ConfigError.unless(n_processes == "1", what, field="--engine ray", found=f"{n_processes} processes", fix=fix)
