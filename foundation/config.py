"""Typed configuration: frozen dataclasses to plain dictionaries and back, strictly.

A recipe, a model's ``config.json`` and the code contract all pass through here. Alternatives are types: a field
annotated ``FSQConfig | VQConfig`` is written as a mapping whose ``type`` key names the alternative. A field annotated
with an ``Extensible`` class takes every subclass of it, also of other packages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from foundation.errors import ConfigError, closest, nearest
from foundation.paths import PathMark, beside, expand
from foundation.yaml_text import Text, guess, read_value

T = TypeVar("T")
_UNIONS = (Union, types.UnionType)


class Choice:
    """Base of dataclasses that are alternatives in a union; ``type_name`` is what a recipe's ``type`` key says."""

    type_name: ClassVar[str]

    def __post_init__(self) -> None:
        check_types(self)


class Extensible(Choice):
    """Base of alternatives to which other packages add: a subclass with a ``type_name`` is one more.

    A package that nobody imports names its class in an entry point of the group ``plugins``.
    """

    plugins: ClassVar[str]

    @classmethod
    def imported(cls) -> dict[str, type]:
        """The alternatives whose files are imported, by ``type_name``.

        Raises:
            ConfigError: two classes have one name.
        """
        found: dict[str, type] = {}
        pending: list[type[Extensible]] = cls.__subclasses__()
        while pending:
            each = pending.pop(0)
            pending = each.__subclasses__() + pending
            if "type_name" in vars(each):
                known = found.setdefault(each.type_name, each)
                same = (known.__module__, known.__qualname__) == (each.__module__, each.__qualname__)
                taken = f"{each.type_name}, the name of {known.__module__}.{known.__qualname__}"
                require(same, f"{each.__module__}.{each.__qualname__}.type_name", taken, "a name of its own")
                found[each.type_name] = each  # a class that a notebook defines again replaces itself
        return found

    @classmethod
    def variants(cls) -> dict[str, type]:
        """All alternatives, by ``type_name``, installed packages included.

        Raises:
            ConfigError: a package's class cannot be imported.
        """
        from importlib import metadata

        for entry in metadata.entry_points(group=cls.plugins):
            try:
                entry.load()
            except Exception as error:
                where, fix = f"{cls.plugins}: {entry.name}", "update its package, or uninstall it"
                raise ConfigError("a plug-in cannot be imported", field=where, found=repr(error), fix=fix) from error
        return cls.imported()


def is_open(hint: Any) -> bool:
    """Whether an annotation is a class to which other packages add alternatives."""
    return isinstance(hint, type) and issubclass(hint, Extensible) and not dataclasses.is_dataclass(hint)


def variants(annotation: Any) -> dict[str, type]:
    """The alternatives that a field's annotation allows, by ``type_name``; empty if ``type`` chooses nothing."""
    found: dict[str, type] = {}
    for each in members(annotation):
        if is_open(each):
            found |= each.variants()
        elif each is not annotation and isinstance(each, type) and issubclass(each, Choice):
            found[each.type_name] = each
    return found


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation alone."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)


def sections(annotation: Any) -> dict[str, type]:
    """The dataclasses that a field may hold: alternatives by ``type_name``, or a single one by ""."""
    plain = [each for each in members(annotation) if isinstance(each, type) and dataclasses.is_dataclass(each)]
    return variants(annotation) or ({"": plain[0]} if plain else {})


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
    if hasattr(cls, "upgraded"):  # a class that was once saved in another form
        values = cls.upgraded(values)  # type: ignore[attr-defined]
    values = {key: value for key, value in values.items() if not (key == "type" and issubclass(cls, Choice))}
    hints = _type_hints(cls)  # type: ignore[arg-type]
    known = {each.name: each for each in dataclasses.fields(cls) if each.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = closest(key, known)
            hint = f"did you mean {near!r}?" if near else nearest(key, known)
            raise ConfigError(f"unknown key; {hint}", field=_join(where, key))
    built = {key: convert(hints[key], value, _join(where, key)) for key, value in values.items()}
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


def environment_seconds(variable: str, default: float) -> float:
    """The number of seconds that an environment variable holds.

    Raises:
        ConfigError: no positive number.
    """
    text, seconds = os.environ.get(variable, str(default)), 0.0
    with contextlib.suppress(ValueError):
        seconds = float(text)
    require(0 < seconds < 1e8, variable, text, "a number of seconds above 0")
    return seconds


def require(condition: bool, field: str, found: object, expected: str, fix: str | None = None) -> None:
    """Raise ``ConfigError`` naming the field unless ``condition`` holds; for ``__post_init__`` methods."""
    if not condition:
        raise ConfigError("has a value that cannot work", field=field, found=found, expected=expected, fix=fix)


def check_types(config: Any, *names: str) -> None:
    """Check fields of a dataclass against their annotations, as ``from_dict`` does; for ``__post_init__`` methods.

    What another type of number or path means is stored: 8 for ``numpy.int64(8)``, text for a ``Path``.

    Args:
        config: an instance.
        names: the fields; all without any.

    Raises:
        ConfigError: a field has another type.
    """
    hints = _type_hints(config.__class__)
    for name in names or [each.name for each in dataclasses.fields(config)]:
        value = getattr(config, name)
        converted = convert(hints[name], value, name)
        if converted is not value:
            object.__setattr__(config, name, converted)  # a frozen dataclass


_RANGES: dict[str, Callable[[Any], bool]] = {
    "above 0": lambda value: value > 0,
    "0 or more": lambda value: value >= 0,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0 to below 1": lambda value: 0 <= value < 1,
}


def require_range(config: object, expected: str, *names: str) -> None:
    """Raise ``ConfigError`` naming the first of these fields outside its range, such as ``0 or more``."""
    check_types(config, *names)
    for name in names:
        value = getattr(config, name)
        require(_RANGES[expected](value), name, value, expected)


def _construct(cls: type[T], built: dict[str, Any], where: str) -> T:
    try:
        return cls(**built)
    except ConfigError as error:  # raised by __post_init__, which knows the field but not where it stands
        if not where or str(error).startswith(where + "."):
            raise
        raise ConfigError(f"{where}.{error}") from None


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def convert(hint: Any, value: Any, where: str) -> Any:
    """A value as a field of type ``hint`` holds it.

    Args:
        hint: an annotation, such as ``int | None``.
        value: plain, or ``Text`` as a user typed it.
        where: dotted name of the field.

    Raises:
        ConfigError: a value of the wrong type.
    """
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _convert_marked(options, value, where)
    if type(None) in members(hint) and (value is None or (isinstance(value, Text) and _is_null(hint, value))):
        return None
    if isinstance(value, Text):
        value = _typed(hint, value, where)
    if is_open(hint):
        return _convert_choice(hint.imported(), value, where, hint.variants)
    if origin in _UNIONS:
        return _convert_union(hint, value, where)
    if origin is Literal:
        if any(type(value) is type(option) and value == option for option in options):
            return value
        raise ConfigError("is not one of the choices", field=where, found=repr(value), fix=nearest(value, options))
    if origin is tuple:
        return _convert_tuple(options, value, where)
    if origin is dict:
        return guess(dict(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    return _convert_scalar(hint, value, where)


def _convert_marked(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """A value of an annotated type; of a path, what it means where it stands."""
    mark = next((each for each in options[1:] if isinstance(each, PathMark)), None)
    if mark is None:
        return convert(options[0], value, where)
    folder = value.folder if isinstance(value, Text) else None
    path = convert(options[0], os.fspath(value) if isinstance(value, os.PathLike) else value, where)
    return expand(path, where) if folder is None else beside(path, folder, mark, where)


def _is_null(hint: Any, text: Text) -> bool:
    """Whether text means null; ``none`` does where nothing else of the field is text."""
    is_text = any(getattr(each, "__origin__", each) is str for each in members(hint))
    return text.is_null or (not is_text and not text.quoted and text.lower() == "none")


def _typed(hint: Any, text: Text, where: str) -> Any:
    """What a typed text means in a field of this type; numbers, text, and what lists and unions hold, stay ``Text``."""
    origin = typing.get_origin(hint)
    if sections(hint):
        return Text.mapping(text, where) if text.lstrip()[:1] == "{" else str(text)
    if origin in _UNIONS or hint in (int, float, str):
        return text
    if origin is Literal:
        return next((each for each in typing.get_args(hint) if str(each) == text), str(text))
    if origin is tuple:
        return read_value(text, where) if text.lstrip().startswith("[") and not text.quoted else [text]
    if hint is bool:
        return text.boolean
    return guess(text if text.quoted or text.folder else read_value(text, where))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint in (int, float) and not isinstance(value, bool):
        number = _number(hint, value)
        if number is not None:
            return number
    if hint is str and isinstance(value, Text) and value.comment:
        fix = f'quote it: "{value} {value.comment}"; a space after the # makes a comment'
        raise ConfigError("is followed by what YAML takes for a comment", field=where, found=value.comment, fix=fix)
    if hint is str and isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)  # of ``Text`` its characters; a folder named 2024 may come as a number from Python
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint is Any or (hint in (str, bool) and isinstance(value, hint)):
        return value
    raise ConfigError("has the wrong type", field=where, found=repr(value), expected=_describe(hint))


def _number(hint: type, value: Any) -> float | int | None:
    """A finite number, also from text, since YAML 1.1 reads 1e-3 and 1e4 as text; None for anything else."""
    quoted = isinstance(value, str) and getattr(value, "quoted", True)
    if hint is int and quoted and "e" not in value.lower():
        return None
    with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):  # the third: of torch
        number = float(value)
        if hint is float:
            return number if math.isfinite(number) else None
        digits = isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("+-").isdecimal())
        return int(value) if digits else int(number) if number.is_integer() else None
    return None


def _convert_tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError("is not a list", field=where, found=repr(value), expected="a list such as [1, 2]")
    if len(options) == 2 and options[1] is Ellipsis:
        return tuple(convert(options[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if len(value) != len(options):
        raise ConfigError("has the wrong length", field=where, found=list(value), expected=f"{len(options)} values")
    return tuple(
        convert(hint, each, f"{where}[{i}]") for i, (hint, each) in enumerate(zip(options, value, strict=True))
    )


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    options = tuple(each for each in members(hint) if each is not type(None))
    if len(options) == 1:
        return convert(options[0], value, where)
    choices = variants(hint)
    if choices:
        return _convert_choice(choices, value, where)
    for option in options:
        try:
            return convert(option, value, where)
        except ConfigError:
            continue
    expected = " or ".join(_describe(each) for each in options)
    raise ConfigError("has the wrong type", field=where, found=repr(value), expected=expected)


def _convert_choice(
    choices: dict[str, type], value: Any, where: str, installed: Callable[[], dict[str, type]] | None = None
) -> Any:
    if type(value) in choices.values():
        return value
    named = value.get("type") if isinstance(value, Mapping) else None
    if named not in choices and installed is not None:
        choices = installed()
    if named not in choices:
        found = repr(value) if named is None else repr(named)
        raise ConfigError(
            "names no known alternative", field=_join(where, "type"), found=found, fix=nearest(str(named), choices)
        )
    return from_dict(choices[named], value, where)


def _describe(hint: Any) -> str:
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"a mapping ({hint.__name__})"
    names = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint))
