"""Help texts in two columns, 100 characters wide."""

from __future__ import annotations

import textwrap
from typing import Any

WIDTH = 100


def row(label: str, text: str, start: int = 29) -> str:
    """A label and its text, wrapped beside it; below a label that is too long."""
    first = f"{label:<{start - 1}} " if len(label) < start else " " * start
    filled = textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * start) or label
    return filled if len(label) < start else f"{label}\n{filled}"


class Columns:
    """Formatter of cyclopts' help: a heading, then names beside descriptions."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Print one panel."""
        entries = [each for each in panel.entries if each.display_labels]
        if entries:
            lines = [_entry(each, panel.format == "parameter") for each in entries]
            print("\n".join(["", f"{panel.title.replace('Parameters', 'Options')}:", *lines]), file=console.file)

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Print the usage line."""
        print(
            _plain(usage).replace("[ARGS...]", "[--FIELD VALUE ...]").replace("[ARGS]", "[SECTION]"),
            end="\n\n",
            file=console.file,
        )

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Print what the command does."""
        paragraphs = _plain(description).split("\n\n")
        print("\n\n".join(textwrap.fill(" ".join(each.split()), WIDTH) for each in paragraphs), file=console.file)


def _entry(entry: Any, is_parameter: bool) -> str:
    text = _plain(entry.description)
    if is_parameter:
        text += f" ({', '.join(entry.choices)})" if entry.choices else ""
        text += f" [{entry.default}]" if entry.default not in (None, "False", '""') else ""
    return row("  " + ", ".join(entry.display_labels_with_metavar), text)


def _plain(text: Any) -> str:
    text = getattr(text, "primary_renderable", text)
    return str(getattr(text, "plain", text) or "").strip()
