"""Tables of kept results: each group of trials with one budget, every row beside the first."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foundation.errors import DataError

FIGURES = {
    "psnr": ("held-out PSNR, dB", ".2f"),
    "rfd": ("Frechet distance of reconstructions", ".1f"),
    "bits": ("held-out bits per image", ".1f"),
    "fd": ("Frechet distance of samples", ".1f"),
    "accuracy": ("class accuracy of samples", ".1%"),
    "recall": ("recall", ".3f"),
    "precision": ("precision", ".3f"),
}
"""figures of a result => heading and format"""


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """The results of a file of kept results."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def inserted(document: str, name: str, text: str) -> str:
    """A document with the text in the place that two comments mark, ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        DataError: the document has no such place.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    found, fix = begin in document and end in document, f"add the lines {begin.strip()} and {end} where they belong"
    DataError.unless(found, "has no place for the tables", field=name, fix=fix)
    before, rest = document.split(begin, 1)
    return f"{before}{begin}\n{text}\n\n{end}{rest.split(end, 1)[1]}"


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table for each budget, in the order of the file."""
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    parts = []
    for budget in budgets:
        for pretrained in (False, True):
            own = [row for row in rows if row["budget"] == budget and row["pretrained"] is pretrained]
            if own:
                says = "with features that were trained on other images" if pretrained else "nothing pretrained"
                parts.append(f"`--budget {budget}`, {says}:\n\n{table(own)}")
    return "\n\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each trial, the mean over its seeds and, of several, the standard deviation."""
    heads = ["trial", "seeds", *(says for says, _ in FIGURES.values()), "parameters", "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        stopped = any(row.get("interrupted") for row in own)
        cells = [f"{name}, interrupted" if stopped else name, str(len(own))]
        cells += [_cell([row["figures"].get(key) for row in own], form) for key, (_, form) in FIGURES.items()]
        sizes = own[0]["parameters"]
        cells.append(" + ".join(f"{sizes[stage] / 1e6:.2f} M" for stage in ("tokenizer", "prior") if stage in sizes))
        cells.append(_cell([row["seconds"] / 60 for row in own], ".1f"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None], form: str) -> str:
    known = [each for each in values if each is not None]
    if not known:
        return "-"
    shown = format(statistics.mean(known), form)
    return shown if len(known) == 1 else f"{shown} ± {format(statistics.stdev(known), form)}"
