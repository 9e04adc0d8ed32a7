"""Every field of a recipe with its default and meaning, taken from the dataclasses themselves."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from docstring_parser import parse_from_object

from pipeline.runs.recipe import Recipe


def recipe_fields() -> list[str]:
    """One line per field: its dotted name, default and description."""
    return ["Fields of a recipe, each of which can be given as --NAME VALUE:", *_lines(Recipe, "")]


def _lines(cls: type, prefix: str) -> Iterator[str]:
    texts = {each.arg_name: each.description or "" for each in parse_from_object(cls).params}
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, hint = f"{prefix}{each.name}", hints[each.name]
        alternatives: list[Any] = [each for each in _members(hint) if dataclasses.is_dataclass(each)]
        if not alternatives:
            yield f"  --{name}  {texts.get(each.name, '')}{_default(each)}"
        for alternative in alternatives:
            if len(alternatives) > 1:
                yield f"  --{name}.type {alternative.type_name}  {(alternative.__doc__ or '').strip()}"
            yield from _lines(alternative, f"{name}.")


def _members(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _default(each: dataclasses.Field[Any]) -> str:
    if each.default is not dataclasses.MISSING:
        shown = "null" if each.default is None else each.default
        return f" (default: {list(shown) if isinstance(shown, tuple) else shown})"
    return "" if each.default_factory is not dataclasses.MISSING else " (required)"
