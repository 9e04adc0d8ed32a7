"""Pages: one HTML file with everything in it, from the templates beside this file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.report.blocks import Section

TEMPLATES = Path(__file__).parent / "templates"
_TITLE_END = b" - Tessera</title>"
"""by which a page of ours is known"""
_HEAD = 4096


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES, encoding="utf-8")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render_page(title: str, lead: str, sections: Sequence[Section], *, renewed: bool = False) -> bytes:
    """A page in UTF-8.

    Args:
        title: of the page.
        lead: a sentence or two below it.
        sections: those without blocks are left out.
        renewed: whether the page loads itself again, because more comes.
    """
    shown = [each for each in sections if each.blocks]
    given = {"title": title, "lead": lead, "sections": shown, "renewed": renewed}
    text: str = _environment().get_template("page.html").render(**given)
    return text.encode()


def render_text(template: str, **given: Any) -> str:
    """A text of another kind, from a template whose values stay as they are."""
    text: str = _environment().overlay(autoescape=False).get_template(template).render(**given)
    return text


def is_page(path: Path) -> bool:
    """Whether a file is a page of ours."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _TITLE_END in file.read(_HEAD)
