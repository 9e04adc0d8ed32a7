"""Recipe files: built-in ones, a user's own that extend others, and the ones in run folders."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from foundation.config_fields import merge
from foundation.errors import ConfigError, nearest
from foundation.paths import expand, from_root, is_there
from foundation.yaml_text import Text, read_file
from stage1_tokenizer.config import nested_networks


def built_in_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(each.name.removesuffix(".yaml") for each in _built_in().iterdir() if each.name.endswith(".yaml"))


@dataclass(frozen=True)
class RecipeValues:
    """Values of a recipe; scalars are ``Text``.

    Attributes:
        values: all, laid over those that it extends.
        own: those in its own file; none of a built-in recipe or a run folder.
        chosen: for each stage, those given where the recipe names a model to use or to start from, or later; None if it
            names none.
    """

    values: dict[str, Any]
    own: dict[str, Any]
    chosen: dict[str, dict[str, Any] | None]


STAGES = ("tokenizer", "prior")


def names_model(values: Mapping[str, Any], stage: str) -> bool:
    """Whether values name a model folder for a stage: ``pretrained`` or ``start_from``."""
    own = values.get(stage)
    return isinstance(own, Mapping) and any(own.get(field) is not None for field in ("pretrained", "start_from"))


def chosen_since(
    chosen: Mapping[str, dict[str, Any] | None], values: Mapping[str, Any]
) -> dict[str, dict[str, Any] | None]:
    """``RecipeValues.chosen`` after further values were laid over."""
    since: dict[str, dict[str, Any] | None] = {}
    for stage in STAGES:
        before = chosen.get(stage)
        since[stage] = dict(values) if names_model(values, stage) else None if before is None else merge(before, values)
    return since


def read_recipe(recipe: str) -> RecipeValues:
    """The values of a recipe, laid over those that it extends.

    Args:
        recipe: path of a YAML file, or the name of a built-in recipe.

    Raises:
        ConfigError: no such file or built-in recipe, or one that is not readable.
    """
    path = Path(expand(recipe, "recipe"))
    if path.is_file():
        return _read_extended(path)
    return _read_extended(_built_in_file(recipe, "recipe", "give a YAML file or a built-in name"))


def own_fields(recipe: str) -> set[str]:
    """Dotted names of the fields in a user's own recipe file; none of a built-in recipe or a run folder."""
    path = Path(expand(recipe, "recipe"))
    return set() if path.is_dir() else set(leaves(read_recipe(recipe).own))


def leaves(values: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Dotted names of the values in nested mappings."""
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            yield from leaves(value, name)
        else:
            yield name


def _built_in() -> Path:
    return Path(str(resources.files("pipeline") / "recipes"))


def _built_in_file(name: str, field: str, advice: str) -> Path:
    if name in built_in_recipes():
        return _built_in() / f"{name}.yaml"
    fix = f"{advice}: {nearest(name, built_in_recipes())}"
    if Path(expand(name, field)).is_dir():
        fix = f"it is a folder; for its images: the recipe folder with --data.source.path {name}"
    raise ConfigError("is neither a file nor a built-in recipe", field=field, found=name, fix=fix)


def _read_extended(path: Path, above: tuple[Path, ...] = ()) -> RecipeValues:
    """A recipe's values laid over each recipe that it extends, the later over the earlier."""
    chain = (*above, path.resolve())
    values, is_own = _read_one(path)
    bases = values.pop("extends", [])
    merged: dict[str, Any] = {}
    chosen: dict[str, dict[str, Any] | None] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        parent = _extended(str(base), path)
        if parent.resolve() in chain:
            raise ConfigError("extends itself", field="extends", found=base, fix=f"break the circle at {path}")
        part = _read_extended(parent, chain)
        merged = merge(merged, part.values)
        since = chosen_since(chosen, part.values)
        chosen = {stage: own if (own := part.chosen[stage]) is not None else since[stage] for stage in STAGES}
    return RecipeValues(merge(merged, values), values if is_own else {}, chosen_since(chosen, values))


def _extended(base: str, path: Path) -> Path:
    """The file that ``extends`` of the recipe at ``path`` names: beside it, with or without ending, or built in."""
    name = expand(base, "extends")
    candidates = [path.parent / name, path.parent / f"{name}.yaml"]
    for each in candidates:
        if each.is_file():
            return each
    here = next((each for each in (Path(name), Path(f"{name}.yaml")) if each.is_file()), None)
    if here is not None and base not in built_in_recipes():
        raise ConfigError(
            "is not there: what a recipe extends is named relative to its own file",
            field="extends",
            found=f"{base}, that is {candidates[0]}",
            fix=f"write {os.path.relpath(here, path.parent)} for {here.absolute()}",
        )
    return _built_in_file(base, "extends", f"give a YAML file beside {path.name} or a built-in name")


def _read_one(path: Path) -> tuple[dict[str, Any], bool]:
    """The values in one file, and whether it is a user's own.

    Paths in a built-in recipe are relative to the working directory.
    """
    ours = path.resolve().is_relative_to(_built_in().resolve())
    values = read_file(path, None if ours else path.parent)
    if "versions" in values and "paths" not in values:  # a run of an earlier version: relative to the working directory
        values = read_file(path, None)
    of_run = "versions" in values
    if of_run:
        _find_again(values, values.pop("paths", {}), path.parent)
        del values["versions"]
    stage = values.get("tokenizer")
    if isinstance(stage, dict) and isinstance(stage.get("model"), dict):
        stage["model"] = nested_networks(stage["model"])  # before it is laid over others in today's form
    return values, not (ours or of_run)


def _find_again(values: dict[str, Any], seen: Any, folder: Path) -> None:
    """Set the paths of a run folder that are gone to what is there seen from the folder."""
    for dotted, relative in seen.items() if isinstance(seen, dict) else ():
        *parents, last = dotted.split(".")
        section = functools.reduce(lambda inner, name: inner.get(name, {}), parents, values)
        saved, moved = str(section.get(last, "")), from_root(folder / relative)
        if not saved or moved == saved or not is_there(moved):
            continue
        if is_there(saved):
            if not (Path(saved).exists() and Path(moved).exists() and Path(saved).samefile(moved)):
                say(f"{dotted}: using {saved}, as when the run was made; {moved} is there too")
            continue
        say(f"{dotted}: {saved} is gone; using {moved}, which has moved with the run folder")
        section[last] = Text(moved)


@functools.cache
def say(text: str) -> None:
    """Print a line for the user on stderr, once in a process."""
    print(text, file=sys.stderr)
