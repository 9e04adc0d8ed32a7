"""Tables of kept results: one for each budget and kind of machine, with the ratio of each row to the first."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foundation.errors import DataError

FIGURES = {
    "psnr": ("held-out PSNR, dB", ".2f", False),
    "rfd": ("Frechet distance of reconstructions", ".1f", True),
    "bits": ("held-out bits per image", ".1f", True),
    "fd": ("Frechet distance of samples", ".1f", True),
    "accuracy": ("class accuracy of samples", ".1%", True),
    "recall": ("recall", ".3f", False),
    "precision": ("precision", ".3f", False),
}
"""figures of a result => heading, format, and whether its ratio to the first row's is shown"""


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
    """Markdown: a table for each budget and kind of machine, in the order of the file.

    Trials with pretrained features have a table of their own, which begins with the same recipe without them.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["budget"], row["machine"], row["pretrained"]), []).append(row)
    parts = []
    for (budget, machine, pretrained), own in groups.items():
        says = "with features that were trained on other images" if pretrained else "nothing pretrained"
        beside = _recipe_alone(own, groups.get((budget, machine, False), [])) if pretrained else []
        parts.append(f"`--budget {budget}`, {machine}, {says}:\n\n{table([*beside, *own])}")
    return "\n\n".join(parts)


def _recipe_alone(own: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The results of the recipe of ``own`` in which nothing is switched: at their sizes, or as it stands."""
    recipe, fields = own[0]["recipe"], own[0]["fields"]
    alike = [
        row
        for row in plain
        if row["recipe"] == recipe and row["revision"] is None and row["codes_of"] is None
        if all(name in fields and fields[name] == value for name, value in row["fields"].items())
    ]
    most = max((len(row["fields"]) for row in alike), default=0)
    return [row for row in alike if len(row["fields"]) == most]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each trial, the mean over its seeds and, of several, the standard deviation; in brackets the
    ratio of the mean to that of the first trial.
    """
    heads = ["trial", "seeds", *(says for says, _, _ in FIGURES.values()), "parameters", "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    first = next(iter(by_name.values()))
    for name, own in by_name.items():
        stopped = any(row.get("interrupted") for row in own)
        cells = [f"{name}, interrupted" if stopped else name, str(len(own))]
        for key, (_, form, compared) in FIGURES.items():
            base = _known(first, key) if compared and own is not first else []
            cells.append(_cell(_known(own, key), form, base))
        sizes = own[0]["parameters"]
        cells.append(" + ".join(f"{sizes[stage] / 1e6:.2f} M" for stage in ("tokenizer", "prior") if stage in sizes))
        cells.append(_cell([row["seconds"] / 60 for row in own], ".1f", []))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _known(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [row["figures"][key] for row in rows if row["figures"].get(key) is not None]


def _cell(values: Sequence[float], form: str, base: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = statistics.mean(values)
    spread = "" if len(values) == 1 else f" ± {format(statistics.stdev(values), form)}"
    ratio = f" ({mean / statistics.mean(base):.2f})" if base else ""
    return format(mean, form) + spread + ratio
