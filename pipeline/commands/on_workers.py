"""Training commands on the workers of a cluster: their arguments as they hold in any process."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foundation.config_fields import path_fields
from foundation.paths import absolute, expand, from_root
from pipeline.engines.config import EngineConfig
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe

_LOCK_SECONDS = 120.0
"""that the lock of a run folder is waited for: workers of a command before that was killed end a little later"""


def train_on_workers(
    engine: EngineConfig,
    work: Callable[..., None],
    recipe: str | None,
    overrides: Mapping[str, Any],
    resolved: tuple[Recipe, RunFolder],
    mirror: str | None = None,
) -> None:
    """Do the work of a training command on the workers of a cluster.

    Args:
        engine: the cluster; without GPUs and a number of workers, one on each node fills its cores by threads.
        work: ``train_here`` with what it trains.
        recipe, overrides, mirror: of the command.
        resolved: recipe and run folder that they mean.

    Raises:
        see ``train_on_ray`` and ``start_run``.
    """
    from pipeline.engines.ray_train import ClusterWork, train_on_ray

    loaded, folder = resolved
    root = Path(from_root(folder.root))
    given = _from_root(loaded, overrides)
    named = None if recipe is None else expand(recipe, "recipe")
    source = from_root(named) if named is not None and Path(named).exists() else recipe
    on_worker = functools.partial(work, source, str(root), given, mirror=mirror, lock_seconds=_LOCK_SECONDS)
    sizes = (getattr(loaded, stage).training.fit.batch_size for stage in ("tokenizer", "prior"))
    kind = loaded.machine.device.partition(":")[0]
    on_gpus = None if kind == "auto" else kind != "cpu"
    train_on_ray(ClusterWork(on_worker, root, math.gcd(*sizes), on_gpus, RunFolder(root).done), engine)


def _from_root(recipe: Recipe, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides with paths that hold in any working directory."""
    paths = {name: absolute(path, mark) for name, path, mark in path_fields(recipe)}
    return {name: paths.get(name, value) if isinstance(value, str) else value for name, value in overrides.items()}
