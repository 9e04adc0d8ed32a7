"""Where the training commands do their work: in this process, or on the workers of a cluster."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from foundation.config_fields import path_fields
from foundation.paths import absolute, expand, from_root
from pipeline.engines.config import EngineConfig
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe

_LOCK_SECONDS = 120.0
"""that the lock of a run folder is waited for: workers of a command before that was killed end a little later"""


class TrainingWork(Protocol):
    """The work of a training command, as one process of it does it."""

    def __call__(
        self, recipe: str, out: str | None, overrides: Mapping[str, Any], *, lock_seconds: float = 0.0
    ) -> None:
        """Arguments: see ``start_run``."""
        ...


def train_with(
    engine: EngineConfig,
    work: TrainingWork,
    recipe: str,
    out: str | None,
    overrides: Mapping[str, Any],
    resolved: tuple[Recipe, RunFolder] | None = None,
) -> None:
    """Do the work of a training command where the engine says.

    Args:
        engine: where; without GPUs and a number of workers, one on each node fills its cores by threads.
        work: a function of a module.
        recipe, out, overrides: of the command.
        resolved: recipe and run folder that they mean; needed with Ray.

    Raises:
        see ``train_on_ray`` and ``start_run``.
    """
    if engine.engine == "local":
        work(recipe, out, overrides)
        return
    from pipeline.engines.ray_train import ClusterWork, train_on_ray

    assert resolved is not None
    loaded, folder = resolved
    root = Path(from_root(folder.root))
    given = _from_root(loaded, overrides)
    named = expand(recipe, "recipe")
    source = from_root(named) if Path(named).exists() else recipe
    on_worker = functools.partial(work, source, str(root), given, lock_seconds=_LOCK_SECONDS)
    sizes = (getattr(loaded, stage).training.fit.batch_size for stage in ("tokenizer", "prior"))
    kind = loaded.machine.device.partition(":")[0]
    on_gpus = None if kind == "auto" else kind != "cpu"
    train_on_ray(ClusterWork(on_worker, root, math.gcd(*sizes), on_gpus, RunFolder(root).done), engine)


def _from_root(recipe: Recipe, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides with paths that hold in any working directory."""
    paths = {name: absolute(path, mark) for name, path, mark in path_fields(recipe)}
    return {name: paths.get(name, value) if isinstance(value, str) else value for name, value in overrides.items()}
