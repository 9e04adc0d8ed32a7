"""Mistakes of the command line in one line, which names options as they are typed."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from foundation.errors import TesseraError, closest

if TYPE_CHECKING:
    from cyclopts import CycloptsError

Commands = Mapping[str, Mapping[str, tuple[str, str]]]


def option_names(command: Callable[..., Any]) -> Iterator[str]:
    """The options of a command, and of its groups, with underscores."""
    hints = typing.get_type_hints(command)
    for each in inspect.signature(command).parameters.values():
        if each.kind is each.KEYWORD_ONLY:
            yield from _names(each.name, hints[each.name])


def _names(name: str, hint: Any) -> Iterator[str]:
    if not dataclasses.is_dataclass(hint):
        yield name
        return
    hints = typing.get_type_hints(hint)
    for each in dataclasses.fields(hint):
        yield from _names(each.name, hints[each.name])


def as_typed(error: TesseraError, arguments: list[str], commands: Commands) -> str:
    """An error's message, in one line, with options instead of the Python arguments of the same meaning."""
    message, name = str(error), _command(arguments, commands)
    if name is None:
        return in_one_line(message)
    module, function = dict(each for group in commands.values() for each in group.items())[name][0].split(":")
    command = getattr(importlib.import_module(f"pipeline.commands.{module}"), function)
    names = {each: _dashed(each) for each in option_names(command)}
    if "class_label" in names:
        names["class_labels"] = names["class_label"]
    if error.field in names:
        message = message.replace(f"{error.field}:", f"{names[error.field]}:", 1)
    return in_one_line("\n".join(_with_options(line, names) for line in message.splitlines()))


def _with_options(line: str, names: dict[str, str]) -> str:
    """A line of a message, other than that of the value, whose long argument names become options."""
    if line.startswith("  found:"):
        return line
    long = "|".join(re.escape(each) for each in names if "_" in each)
    return re.sub(rf"(?<![\w.-])({long})\b(=?)", lambda it: names[it[1]] + " " * len(it[2]), line) if long else line


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _command(arguments: list[str], commands: Commands) -> str | None:
    known = [name for group in commands.values() for name in group]
    return next((name for name in known if arguments[: len(name.split())] == name.split()), None)


def in_one_line(message: str) -> str:
    """A message of several short lines in one; one that lists things keeps its lines."""
    return message if "\n    " in message else "; ".join(" ".join(line.split()) for line in message.splitlines())


def mistake(error: CycloptsError, commands: Commands) -> str:
    """What is wrong with the command line, as a sentence."""
    from cyclopts import MissingArgumentError, UnknownCommandError, UnusedCliTokensError

    command, unused = " ".join(error.command_chain or ()), error.unused_tokens or []
    if isinstance(error.__cause__, TesseraError):  # of a value that one of our types refused
        return str(error.__cause__)
    if isinstance(error, UnknownCommandError):
        names = [name for group in commands.values() for name in group if name.startswith(command)]
        near = closest(unused[0], [name.removeprefix(command).split()[0] for name in names])
        advice = f"did you mean {near!r}?" if near else f"see {f'tessera {command}'.strip()} --help"
        return f"unknown command {unused[0]!r}; {advice}"
    if isinstance(error, UnusedCliTokensError) and error.target:
        parameters = inspect.signature(error.target).parameters.values()
        taken = " ".join(each.name.upper() for each in parameters if each.kind is each.POSITIONAL_ONLY)
        return f"{command} takes {taken or 'no argument'}; found also {' '.join(map(repr, unused))}"
    if isinstance(error, MissingArgumentError) and error.argument:
        return f"{error.keyword} needs a value" if error.keyword else f"{command} needs {error.argument.name}"
    return " ".join(str(error).split())
