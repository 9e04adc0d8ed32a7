"""Recipe fields on the command line: ``--dotted.name VALUE``, and ``tessera fields``."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from foundation.config import Text, members, sections, to_dict, variants
from foundation.config_fields import ELEMENT, Entry, entries
from foundation.errors import ConfigError, closest
from pipeline.commands.help import WIDTH, row
from pipeline.runs.recipe import Recipe


def read_fields(tokens: Sequence[str], command: Callable[..., Any]) -> dict[str, Any]:
    """Read ``--dotted.name VALUE``, ``--dotted.name=VALUE`` and, for lists, ``--dotted.name VALUE VALUE``.

    Args:
        tokens: what is no option of the command itself.
        command: its options are named too where a field is mistyped.

    Returns:
        Dotted name -> value; names of alternatives first, since they decide which fields there are.

    Raises:
        ConfigError: an unknown field, named with the nearest, one without a value, or one that is given twice.
    """
    known = {each.name: each.annotation for each in entries(Recipe) if ELEMENT not in each.name}
    known |= {f"{name}.type": str for name, annotation in known.items() if variants(annotation)}
    own = [each.name for each in inspect.signature(command).parameters.values() if each.kind is each.KEYWORD_ONLY]
    found: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        name = option[2:].replace("-", "_")
        if not option.startswith("--") or name not in known:
            raise ConfigError(_unknown(option, [*known, *own]))
        ConfigError.unless(name not in found, f"{option} is given twice")
        values = [value] if equals else []
        while rest and not equals and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        found[name] = _value(option, values, known[name])
    return dict(sorted(found.items(), key=lambda item: (not item[0].endswith(".type"), item[0].count("."))))


def _value(option: str, values: list[str], annotation: Any) -> Any:
    if not values and annotation is bool:
        return True
    if len(values) == 1:
        return Text.mapping(values[0], option) if sections(annotation) and values[0][:1] == "{" else Text(values[0])
    if values and any(typing.get_origin(each) is tuple for each in members(annotation)):
        return [Text(each) for each in values]
    raise ConfigError(f"{option} takes one value" + (f", found {len(values)}: {' '.join(values)}" if values else ""))


def _unknown(option: str, known: list[str]) -> str:
    if not option.startswith("--"):
        return f"unexpected argument {option!r}; a field of the recipe is given as --NAME VALUE"
    name = option[2:].replace("-", "_")
    last = closest(name.rpartition(".")[2], {each.rpartition(".")[2] for each in known})
    alike = [each for each in known if each.rpartition(".")[2] == last]
    near = closest(name, alike) if "." in name else None
    alike = [near] if near else list(dict.fromkeys(alike))[:3]
    names = " or ".join(f"--{each.replace('_', '-')}" for each in alike)
    advice = f"did you mean {names}?" if names else "tessera fields lists the fields of a recipe"
    return f"unknown option {option}; {advice}"


def show_fields(
    section: Annotated[str, Parameter(help="a section, e.g. prior.training; default an overview of all sections")] = "",
    /,
) -> None:
    """List the fields of a recipe: name, default, meaning.

    A dot is a level of the YAML file; on the command line a field is an option: --prior.model.d-model 256.
    """
    section = section.removeprefix("--").replace("-", "_").rstrip(".")
    rows = list(entries(Recipe))
    if section and not any(each.name == section for each in rows):
        near = closest(section, [each.name for each in rows])
        raise ConfigError(f"unknown field {section}; " + (f"did you mean {near}?" if near else "see tessera fields"))
    print("\n".join(_page(rows, section) if section else _overview(rows)))


def _overview(rows: list[Entry]) -> Iterator[str]:
    yield "Sections of a recipe; tessera fields SECTION lists the fields below it."
    for each in rows:
        if sections(each.annotation) and each.name.count(".") < 3:
            yield _row(each.name, "", _choice(each.annotation, each.help), 0)
    yield ""
    yield from (_field(each) for each in rows if "." not in each.name and not sections(each.annotation))


def _page(rows: list[Entry], prefix: str) -> Iterator[str]:
    heading = None
    for each in rows:
        section = each.name.rpartition(".")[0]
        if each.name == prefix and not sections(each.annotation):
            yield _field(each)
        elif each.name == prefix or each.name.startswith((prefix + ".", prefix + ELEMENT)):
            if sections(each.annotation):
                yield from ("", textwrap.fill(f"{each.name}: {_choice(each.annotation, each.help)}", WIDTH))
                heading = (each.name, "")
                continue
            if heading is None or heading != (section, each.variant):
                yield f"{section}" + (f" with type: {each.variant}" if each.variant else "")
                heading = (section, each.variant)
            yield _field(each)


def _choice(annotation: Any, help: str) -> str:
    names = variants(annotation)
    return f"{help} (type: {', '.join(names)})" if names else help


def _field(each: Entry) -> str:
    default = "required" if each.default is dataclasses.MISSING else _shown(to_dict(each.default))
    choices = [option for member in members(each.annotation) for option in typing.get_args(member)]
    is_choice = any(typing.get_origin(member) is typing.Literal for member in members(each.annotation))
    text = f"{each.help} ({', '.join(map(str, choices))})" if is_choice else each.help
    return _row(each.name.rpartition(".")[2], default, text, 2)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _row(name: str, default: str, text: str, indent: int) -> str:
    return row(" " * indent + (f"{name:<22} {default}" if default else name), text, start=38)
