"""Writes docs/REFERENCE.md: every command, every field of a recipe and the Python interface, from the code.

python scripts/write_reference.py            # writes the file
python scripts/write_reference.py --check    # says whether it is that of the code
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "REFERENCE.md"
SECTIONS = ("data", "tokenizer", "encode", "prior", "samples", "machine")
"""of a recipe"""
CLASSES = (
    "pipeline.generation.generator:ImageGenerator",
    "pipeline.generation.outputs:GeneratorOutput",
    "stage1_tokenizer.tokenizer:TokenizerModel",
    "stage2_prior.prior:PriorModel",
    "foundation.codes.dataset:TokenDataset",
    "foundation.codes.spec:CodeSpec",
)
"""that a user of the Python interface meets"""
_HEAD = """# Reference

Made from the code by `python scripts/write_reference.py`; `tessera COMMAND --help` and `tessera fields SECTION` print
the same.
"""


def reference() -> str:
    """The document."""
    parts = [_HEAD, "## Commands", *_commands(), "## Fields of a recipe", *_fields(), "## Python", *_classes()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _commands() -> Iterator[str]:
    for group, commands in COMMANDS.items():
        yield f"### {group}"
        for name in commands:
            yield _block(f"tessera {name}", _said([*name.split(), "--help"]))


def _fields() -> Iterator[str]:
    yield _block("tessera fields", _said(["fields"]))
    for section in SECTIONS:
        yield _block(f"tessera fields {section}", _said(["fields", section]))


def _block(title: str, text: str) -> str:
    return f"#### `{title}`\n\n```text\n{text.strip()}\n```"


def _said(arguments: list[str]) -> str:
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(arguments)
    assert status == 0, arguments
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _classes() -> Iterator[str]:
    for name in CLASSES:
        yield _class(name.replace(":", "."), resolve_name(name))


def _class(name: str, kind: type) -> str:
    """A class: what it is, its public methods and properties with their first sentences."""
    lines = [f"#### `{name}`", "", _paragraph(kind.__doc__), ""]
    for attribute, member in inspect.getmembers_static(kind):
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        own = not attribute.startswith("_") or attribute == "__call__"
        if own and isinstance(member, property) and member.__doc__:
            lines.append(f"- `{attribute}`: {_paragraph(member.__doc__)}")
        if own and inspect.isfunction(function) and _is_ours(function) and function.__doc__:
            shown = kind.__name__.lower() if attribute == "__call__" else attribute
            lines.append(f"- `{shown}{_signature(function)}`: {_paragraph(function.__doc__)}")
    return "\n".join(lines)


def _is_ours(function: Any) -> bool:
    return function.__module__.split(".")[0] in ("foundation", "stage1_tokenizer", "stage2_prior", "pipeline")


def _signature(function: Any) -> str:
    """Names of the arguments, with their defaults."""
    words, keyword_only = [], False
    for each in list(inspect.signature(function).parameters.values())[1:]:
        if each.kind is each.KEYWORD_ONLY and not keyword_only:
            words.append("*")
            keyword_only = True
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        keyword_only = keyword_only or each.kind is each.VAR_POSITIONAL
        default = "" if each.default is each.empty else f"={each.default!r}"
        words.append(f"{stars}{each.name}{re.sub(r' at 0x[0-9a-f]+', '', default)}")
    return f"({', '.join(words)})"


def _paragraph(doc: str | None) -> str:
    """The first paragraph of a docstring in one line."""
    text = textwrap.dedent(doc or "").strip().split("\n\n")[0]
    return " ".join(text.replace("``", "`").split())


def run() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the file is another")
    text = reference()
    if parser.parse_args().check:
        same = FILE.is_file() and FILE.read_text(encoding="utf-8") == text
        print("as the code" if same else f"another than the code: python {Path(__file__).name}")
        return int(not same)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run())
