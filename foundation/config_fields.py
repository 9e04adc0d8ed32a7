"""Fields of configurations: names, types, defaults, attribute docstrings, and fields added after models were saved.

A model's fingerprint covers its settings. A field that is added later must not change the fingerprints of models that
were saved without it: at its default, which is what those models mean, it is left out.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import inspect
import itertools
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from foundation.config import Choice, members, sections, to_dict
from foundation.paths import PathMark

T = TypeVar("T")
_MARK = "later"
ELEMENT = "[]"
"""after the name of a list, in the names of its elements' fields"""


@dataclass(frozen=True)
class Entry:
    """One field of a configuration, of nested ones and of alternatives too.

    Attributes:
        name: dotted; fields of a list's elements follow ``ELEMENT``.
        annotation: its type.
        default: its value by default; ``dataclasses.MISSING`` if it must be given.
        help: its attribute docstring.
        variant: ``type`` of the alternative that has the field; "" outside unions.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    variant: str = ""


def entries(cls: type, default: Any = None, where: str = "", variant: str = "") -> Iterator[Entry]:
    """List the fields of a dataclass, sections before their fields.

    Args:
        cls: a dataclass type.
        default: an instance whose values are the defaults; None takes the fields' defaults.
        where: dotted prefix.
        variant: ``type`` of the alternative that ``cls`` is.
    """
    docs, hints = attribute_docs(cls), typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        name, hint = f"{where}.{each.name}" if where else each.name, hints[each.name]
        value = _default(each) if type(default) is not cls else getattr(default, each.name)
        yield Entry(name, hint, value, docs.get(each.name, ""), variant)
        for type_name, inner in sections(hint).items():
            yield from entries(inner, value if type(value) is inner else None, name, type_name or variant)
        for element in typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else ():
            for type_name, inner in sections(element).items():
                yield from entries(inner, None, f"{name}{ELEMENT}", type_name or variant)


def path_fields(config: Any, where: str = "") -> Iterator[tuple[str, str, PathMark]]:
    """The fields of a configuration that hold a path: (dotted name, path, mark)."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for each in dataclasses.fields(config):
        name, value = f"{where}.{each.name}" if where else each.name, getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from path_fields(value, name)
        marks = [mark for hint in members(hints[each.name]) for mark in getattr(hint, "__metadata__", ())]
        yield from ((name, value, mark) for mark in marks if isinstance(mark, PathMark) and value is not None)


@functools.cache
def attribute_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, in one line; inherited fields included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        body = _class_bodies(base.__module__).get(base.__qualname__, []) if dataclasses.is_dataclass(base) else []
        for each, below in itertools.pairwise(body):
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and isinstance(below, ast.Expr):
                docs[each.target.id] = " ".join(str(getattr(below.value, "value", "")).split())
    return docs


def added_later(default: T) -> T:
    """Declare a dataclass field with a plain default that ``without_defaults`` leaves out at that default."""
    return dataclasses.field(default=default, metadata={_MARK: True})  # type: ignore[no-any-return]


def without_defaults(config: Any) -> Any:
    """``to_dict`` without later fields at their defaults, in the form that ``config.canonical`` gives it."""
    if isinstance(config, Mapping):
        return {str(key): without_defaults(value) for key, value in config.items()}
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return to_dict(config)
    kept = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if not (each.metadata.get(_MARK) and value == each.default):
            kept[each.name] = without_defaults(value)
    kept = {"type": config.type_name, **kept} if isinstance(config, Choice) else kept
    return config.canonical(kept) if hasattr(config, "canonical") else kept


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


@functools.cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):  # no source at hand
        return {}
    return {each.name: each.body for each in tree.body if isinstance(each, ast.ClassDef)}


def override(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``values["a"]["b"] = value`` for ``dotted = "a.b"``, making the mappings on the way.

    Another ``type`` drops the fields of the alternative that was there. Dashes are underscores.
    """
    *parents, last = dotted.replace("-", "_").split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = values[parent] = {}
        values = inner
    if last == "type" and values.get("type") != value:
        values.clear()
    values[last] = copy.deepcopy(value)  # a later override may change what is inside


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


def replaced(config: T, values: Mapping[str, Any]) -> T:
    """A configuration with other values of some fields, by dotted name; all checks of the classes run again.

    Raises:
        ConfigError: a value that a class refuses.
    """
    changed = {name: value for name, value in values.items() if "." not in name}
    for section in {name.split(".")[0] for name in values if "." in name}:
        inside = {name.removeprefix(f"{section}."): v for name, v in values.items() if name.startswith(f"{section}.")}
        changed[section] = replaced(changed.get(section, getattr(config, section)), inside)
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]
