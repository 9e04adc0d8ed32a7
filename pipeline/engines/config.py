"""Where a command's work is done: ``--engine``, ``--address`` and ``--workers``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foundation.config import check_types, require
from foundation.errors import ConfigError

EngineName = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where the work is done, and by how many."""

    engine: EngineName = "local"
    """this process, or a Ray cluster (extra ray)"""
    address: str | None = None
    """of the cluster, e.g. auto; default RAY_ADDRESS, else one started here"""
    workers: int | None = None
    """processes with the network; default one a GPU, or to fill the cores"""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.workers is None or self.workers > 0, "--workers", self.workers, "a positive whole number")
        for name in ("address", "workers") if self.engine == "local" else ():
            value = getattr(self, name)
            fix = "give --engine ray, or leave it out"
            ConfigError.unless(
                value is None, "has no effect with --engine local", field=f"--{name}", found=value, fix=fix
            )
