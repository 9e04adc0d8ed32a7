"""Typed configuration: frozen dataclasses to plain dictionaries and back, strictly.

A recipe, a model's ``config.json`` and the code contract all pass through here. Alternatives are types: a field
annotated ``FSQConfig | VQConfig`` is written as a mapping whose ``type`` key names the alternative.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar, Union

from foundation.errors import ConfigError, nearest

T = TypeVar("T")


class Choice:
    """Base of dataclasses that are alternatives in a union; ``type_name`` is what a recipe's ``type`` key says."""

    type_name: ClassVar[str]


def to_dict(config: Any) -> Any:
    """Plain dictionaries, lists and scalars of a configuration, ready for JSON or YAML."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {each.name: to_dict(getattr(config, each.name)) for each in dataclasses.fields(config)}
        return {"type": config.type_name, **fields} if isinstance(config, Choice) else fields
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    return config


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass ``cls`` from plain values.

    Args:
        cls: a dataclass type.
        values: its fields; nested dataclasses as nested mappings.
        where: dotted prefix that error messages put before field names.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a missing one, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            "is not a mapping", field=where or cls.__name__, found=values, expected=f"the fields of {cls.__name__}"
        )
    values = {key: value for key, value in values.items() if not (key == "type" and issubclass(cls, Choice))}
    hints = _type_hints(cls)  # type: ignore[arg-type]
    known = {each.name: each for each in dataclasses.fields(cls) if each.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError("unknown key", field=_join(where, key), fix=nearest(key, known))
    built = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    for name, each in known.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and name not in built:
            raise ConfigError("is required and missing", field=_join(where, name), expected=_describe(hints[name]))
    return _construct(cls, built, where)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Equal values give equal texts."""
    return json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def differences(expected: Any, found: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Every leaf in which two configurations differ, as (dotted name, expected value, found value)."""
    expected, found = to_dict(expected), to_dict(found)
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(set(expected) | set(found))
        return [row for key in keys for row in differences(expected.get(key), found.get(key), _join(where, key))]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [row for i, (one, other) in pairs for row in differences(one, other, f"{where}[{i}]")]
    return [] if expected == found else [(where, expected, found)]


def override(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``values["a"]["b"] = value`` for ``dotted = "a.b"``, making the mappings on the way.

    Another ``type`` drops the fields of the alternative that was there.
    """
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = values[parent] = {}
        values = inner
    if last == "type" and values.get("type") != value:
        values.clear()
    values[last] = value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, mapping by mapping; lists and scalars are replaced whole.

    Another ``type`` drops the fields of the alternative that was there.
    """
    if "type" in changes and "type" in base and changes["type"] != base["type"]:
        return dict(changes)
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        merged[key] = merge(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def require(condition: bool, field: str, found: object, expected: str, fix: str | None = None) -> None:
    """Raise ``ConfigError`` naming the field unless ``condition`` holds; for ``__post_init__`` methods."""
    if not condition:
        raise ConfigError("has a value that cannot work", field=field, found=found, expected=expected, fix=fix)


def _construct(cls: type[T], built: dict[str, Any], where: str) -> T:
    try:
        return cls(**built)
    except ConfigError as error:  # raised by __post_init__, which knows the field but not where it stands
        if not where or str(error).startswith(where + "."):
            raise
        raise ConfigError(f"{where}.{error}") from None


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(options, value, where)
    if origin is Literal:
        if value in options:
            return value
        raise ConfigError("is not one of the choices", field=where, found=repr(value), fix=nearest(value, options))
    if origin is tuple:
        return _convert_tuple(options, value, where)
    if origin is dict:
        return dict(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1e-3 as text
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint is str and whole:
        return str(value)  # YAML reads a folder named 2024 as a number
    if hint is Any or (hint is int and whole) or (hint in (str, bool) and isinstance(value, hint)):
        return value
    raise ConfigError("has the wrong type", field=where, found=repr(value), expected=_describe(hint))


def _convert_tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError("is not a list", field=where, found=repr(value), expected="a list such as [1, 2]")
    if len(options) == 2 and options[1] is Ellipsis:
        return tuple(_convert(options[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if len(value) != len(options):
        raise ConfigError("has the wrong length", field=where, found=list(value), expected=f"{len(options)} values")
    return tuple(
        _convert(hint, each, f"{where}[{i}]") for i, (hint, each) in enumerate(zip(options, value, strict=True))
    )


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(each for each in options if each is not type(None))
    if len(options) == 1:
        return _convert(options[0], value, where)
    choices = {each.type_name: each for each in options if isinstance(each, type) and issubclass(each, Choice)}
    if choices and (isinstance(value, Mapping) or len(choices) == len(options)):
        return _convert_choice(choices, value, where)
    for option in options:
        try:
            return _convert(option, value, where)
        except ConfigError:
            continue
    expected = " or ".join(_describe(each) for each in options)
    raise ConfigError("has the wrong type", field=where, found=repr(value), expected=expected)


def _convert_choice(choices: dict[str, type], value: Any, where: str) -> Any:
    if type(value) in choices.values():
        return value
    named = value.get("type") if isinstance(value, Mapping) else None
    if named not in choices:
        found = repr(value) if named is None else repr(named)
        raise ConfigError(
            "names no known alternative", field=_join(where, "type"), found=found, fix=nearest(str(named), choices)
        )
    return from_dict(choices[named], value, where)


def _describe(hint: Any) -> str:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"a mapping ({hint.__name__})"
    names = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint))
