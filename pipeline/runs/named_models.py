"""Models that a recipe names, to use or to start from: their settings become the recipe's. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.config import convert
from foundation.config_fields import merge
from foundation.errors import ConfigError
from foundation.paths import PathText

_KINDS = {"tokenizer": ("pretrained", "start_from"), "prior": ("start_from",)}
Chosen = Mapping[str, dict[str, Any] | None]
"""stage => values given where its model was named, or later; see ``recipe_files``"""


def with_named_models(values: Mapping[str, Any], chosen: Chosen | None = None) -> dict[str, Any]:
    """Set the settings of models that a recipe's values name.

    ``tokenizer.model`` and ``data.preprocess`` are those of the tokenizer; ``prior.model`` is that of the prior. They
    replace those of extended recipes. What was chosen for training on is laid over: the preprocess, and the prior's
    settings. The recipe of a run folder holds all, so the named folders may be gone.

    Args:
        values: of the recipe, nested.
        chosen: values that were given where a model was named, or later; None takes all for such.

    Raises:
        ConfigError: a named folder holds no such model.
        CheckpointError: its settings are damaged.
    """
    full = dict(values)
    chosen = dict.fromkeys(_KINDS, full) if chosen is None else chosen
    found = _settings(full, "tokenizer", ("tokenizer", "preprocess"), chosen)
    if found is not None:
        own = _part(chosen.get("tokenizer"), "data", "preprocess") if _starts(full) else {}
        full["data"] = {**(full.get("data") or {}), "preprocess": merge(found["preprocess"], own)}
        full["tokenizer"] = {**full["tokenizer"], "model": found["tokenizer"]}
    found = _settings(full, "prior", ("prior",), chosen)
    if found is not None:
        own = _part(chosen.get("prior"), "prior", "model")
        full["prior"] = {**full["prior"], "model": merge(found["prior"], own)}
    return full


def model_folder(folder: Path, stage: str) -> Path:
    """Path of a stage's model in a run folder, or the folder itself."""
    return folder / stage if (folder / stage).is_dir() else folder


def _settings(values: Mapping[str, Any], stage: str, keys: tuple[str, ...], chosen: Chosen) -> dict[str, Any] | None:
    """What ``config.json`` of the named model says; None where none is named, or the recipe that names it knows it."""
    own = values.get(stage)
    if not isinstance(own, Mapping):
        return None
    named = {f"{stage}.{kind}": convert(PathText | None, own.get(kind), f"{stage}.{kind}") for kind in _KINDS[stage]}
    field = next((each for each, path in named.items() if path is not None), None)
    if field is None:
        return None
    path = model_folder(Path(named[field]), stage) / "config.json"
    if not path.is_file():
        since = chosen.get(stage) or {}
        if _part(since, stage, "model") and _part(since, "data", "preprocess"):
            return None
        fix = "give a folder made by tessera import, or a run folder"
        raise ConfigError(f"is not a {stage} folder", field=field, found=named[field], fix=fix)
    from foundation.storage.serialization import read_json  # which imports torch

    return read_json(path, keys, fix=f"copy or import the {stage} again")


def _starts(values: Mapping[str, Any]) -> bool:
    return values["tokenizer"].get("start_from") is not None


def _part(values: Mapping[str, Any] | None, section: str, name: str) -> dict[str, Any]:
    inner = (values or {}).get(section)
    part = inner.get(name) if isinstance(inner, Mapping) else None
    return dict(part) if isinstance(part, Mapping) else {}
