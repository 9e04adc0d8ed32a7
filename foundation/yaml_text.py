"""YAML whose scalars stay text: the type of a field, not the look of a value, decides what it means.

YAML 1.1 reads ``010`` as eight, ``12:30`` as 750, ``2024-01-01`` as a date and ``on`` as true.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, ScalarNode

from foundation.errors import ConfigError

_NULLS = ("null", "Null", "NULL", "~", "")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Text(str):
    """A value as a user typed it, on the command line or in a YAML file.

    Attributes:
        folder: of the file that it stands in; None on the command line.
        quoted: it stood in quotes, so that it is text whatever it looks like.
        comment: what followed it on its line, if that reads as a part of the value and not as a comment.
    """

    folder: Path | None = None
    quoted: bool = False
    comment: str = ""

    @property
    def is_null(self) -> bool:
        """Whether an optional field reads it as null."""
        return not self.quoted and self in _NULLS

    @property
    def boolean(self) -> bool | str:
        """True or False where it names one, else the text."""
        return str(self) if self.quoted else _BOOLEANS.get(self.lower(), str(self))

    @classmethod
    def mapping(cls, text: str, where: str) -> dict[str, Any]:
        """Read ``{a: 1, b: {c: x}}``; the leaves are ``Text``.

        Raises:
            ConfigError: not a YAML mapping.
        """
        values = read_value(text, where)
        if not isinstance(values, dict):
            raise ConfigError("is not a mapping", field=where, found=text, expected="{name: value, ...}, or its fields")
        return values


class TextLoader(yaml.SafeLoader):
    """Scalars become ``Text``; a key that stands twice in one mapping is refused."""

    folder: Path | None = None

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Compose a mapping of different keys."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines:
                problem = f"{name!r} stands in line {lines[name]} and again in line {line}"
                raise ComposerError(None, None, problem, key.start_mark)
            lines[name] = line
        return node

    def construct_text(self, node: ScalarNode) -> Text:
        """A scalar as it stands in the file."""
        text = Text(node.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"))  # JSON's pairs
        text.folder, text.quoted = self.folder, node.style is not None
        text.comment = "" if text.quoted else _near_comment(node)
        return text


TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag in ("str", "merge"):
    TextLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", TextLoader.construct_text)


def _near_comment(node: ScalarNode) -> str:
    """``#2`` where a plain value is followed by it: most likely a part of the value, since no space follows the #."""
    mark = node.end_mark
    if mark.buffer is None:
        return ""
    rest = mark.buffer[mark.pointer :].split("\n", 1)[0].rstrip("\0\r")
    after = rest.lstrip(" \t")
    is_part = after.startswith("#") and after[1:2].strip(" \t#!-=") != ""
    return after if is_part else ""


def read_value(text: str, where: str) -> Any:
    """A YAML value whose scalars are ``Text``.

    Raises:
        ConfigError: naming ``where``: no YAML.
    """
    try:
        return yaml.load(text, TextLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not a YAML value: {_problem(error)}", field=where, found=text) from error


class _Dumper(yaml.SafeDumper):
    """Writes text that has one of Unicode's other line breaks in double quotes, which alone keep it as it is."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    style = '"' if any(each in text for each in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def write_value(value: Any) -> str:
    """Plain values as YAML that ``read_value`` reads back, mappings in their order."""
    written: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return written


def guess(value: Any) -> Any:
    """Values as YAML reads them, for a field whose type does not say what it holds."""
    if isinstance(value, dict):
        return {str(key): guess(each) for key, each in value.items()}
    if isinstance(value, list):
        return [guess(each) for each in value]
    if not isinstance(value, Text) or value.quoted:
        return str(value) if isinstance(value, Text) else value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return str(value)


def read_file(path: Path, folder: Path | None) -> dict[str, Any]:
    """The mapping in a YAML file, its scalars ``Text``.

    Args:
        path: the file.
        folder: what relative paths in it are relative to; None is the working directory.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or holds no mapping.
    """
    fix = "correct the file"
    try:
        loader = TextLoader(path.read_text(encoding="utf-8-sig"))
        loader.folder = folder
        values = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"is not readable as YAML: {_problem(error)}", field=where, fix=fix) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not readable as YAML: {error}", field=str(path), fix=fix) from error
    except RecursionError as error:
        what = "is not readable as YAML: its values are nested too deep"
        raise ConfigError(what, field=str(path), fix=fix) from error
    if not isinstance(values, dict):
        raise ConfigError("holds no recipe", field=str(path), expected="keys such as name, data, tokenizer, prior")
    return values


def _problem(error: yaml.YAMLError) -> str:
    """What the parser found, in one line, without its own excerpt of the text."""
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    return " ".join(", ".join(str(part) for part in parts if part).split()) or " ".join(str(error).split())
