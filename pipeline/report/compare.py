"""Comparison of runs on one page: their recipes, figures, curves and samples of equal seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foundation.config import differences, to_dict
from foundation.errors import ConfigError
from foundation.images.preprocess import image_grid
from foundation.storage import durable
from pipeline.report.blocks import Block, Rows, Section, Table, embed
from pipeline.report.charts import Chart, Series
from pipeline.report.page import is_page, render_page
from pipeline.report.summary import RunSummary, codes_in_words, millions
from pipeline.runs.duration import duration
from pipeline.runs.folder import RunFolder
from pipeline.runs.models import open_generator
from pipeline.runs.recipe import determining

_CHARTS = {
    ("tokenizer", "psnr"): ("Tokenizer: validation PSNR", "dB", "Higher is better."),
    ("tokenizer", "code_usage"): ("Tokenizer: codes in use", "share", ""),
    ("prior", "bits_per_code"): ("Prior: validation bits per code", "bits", "Of each run's own codes."),
    ("prior", "below_unigram"): ("Prior: below the frequencies of codes", "share", "Higher is better."),
}
_IMAGES, _CLASSES = 24, 6
_SMALL = 64
"""pixels; smaller images are shown larger"""


def write_comparison(roots: Sequence[Path], page: Path, device: str = "cpu") -> None:
    """Write a page that puts runs side by side.

    Args:
        roots: two run folders or more, finished or not.
        page: the HTML file.
        device: samples are drawn there.

    Raises:
        ConfigError: fewer than two runs, one twice, or another file of that name.
        CheckpointError: one of them is no run.
    """
    ConfigError.unless(len(roots) > 1, "needs two runs or more", field="RUN", found=[str(each) for each in roots])
    names = run_names(roots)
    ours = not page.exists() or is_page(page)
    fix = "give another --out, or move that file away"
    ConfigError.unless(ours, "is another file", field=str(page), expected="a page that this command made", fix=fix)
    runs = dict(zip(names, (RunSummary(RunFolder(root)) for root in roots), strict=True))
    command = "tessera compare " + " ".join(str(root) for root in roots)
    sections = [
        Section("What differs", _recipes(runs)),
        Section("Figures", [_figures(runs)], command=f"tessera evaluate {roots[0]}"),
        Section("Samples of equal seeds", _samples(runs, device), "The same random numbers in each run.", command),
        Section("Curves", _charts(runs), command=command),
    ]
    durable.replace_file(page, render_page(" and ".join(names), "Runs side by side.", sections))


def run_names(roots: Sequence[Path]) -> list[str]:
    """A name for each run: of its folder, with as much of the path before it as tells them apart.

    Raises:
        ConfigError: a run is there twice.
    """
    paths = [root.resolve() for root in roots]
    twice = len(set(paths)) < len(paths)
    ConfigError.unless(not twice, "is there twice", field="RUN", found=[str(each) for each in roots])
    for n_parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-n_parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _recipes(runs: Mapping[str, RunSummary]) -> list[Block]:
    """The fields in which recipes differ, and their value in each run."""
    recipes = [determining(to_dict(run.recipe)) for run in runs.values()]
    fields = {name for other in recipes[1:] for name, _, _ in differences(recipes[0], other)}
    if not fields:
        return [Table([("nothing", *("" for _ in runs))], ("", *runs), "The recipes are the same.", numeric=False)]
    rows = [(name, *(_shown(_at(recipe, name)) for recipe in recipes)) for name in sorted(fields)]
    return [Table(rows, ("field", *runs), "Fields of the recipes that differ; the others are equal.", numeric=False)]


def _at(values: Any, name: str) -> Any:
    """The value of a dotted name, such as ``terms[0].weight``; None where there is none."""
    for part in name.replace("[", ".[").split("."):
        if part.startswith("["):
            index = int(part[1:-1])
            values = values[index] if isinstance(values, list) and index < len(values) else None
        else:
            values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _figures(runs: Mapping[str, RunSummary]) -> Table:
    rows: list[Sequence[str]] = [("state", *(run.state for run in runs.values()))]
    specs = [run.spec for run in runs.values()]
    rows.append(("codes of an image", *("-" if spec is None else codes_in_words(spec) for spec in specs)))
    for stage in ("tokenizer", "prior"):
        counts = [run.parameters.get(stage) for run in runs.values()]
        rows.append((f"{stage}, parameters", *("-" if each is None else millions(each) for each in counts)))
        rows.append((f"{stage}, steps", *("{:,} of {:,}".format(*run.steps(stage)) for run in runs.values())))
    names = sorted({name for run in runs.values() for name in run.figures})
    for name in names:
        values = [run.figures.get(name) for run in runs.values()]
        says = name.replace(".", ", ").replace("_", " ")
        rows.append((says, *("-" if value is None else f"{value:,.5g}" for value in values)))
    rows += _sample_rows(runs)
    rows.append(("time", *(duration(run.seconds) if run.seconds else "-" for run in runs.values())))
    return Table(rows, ("", *runs), "Of the last evaluations; bits of different tokenizers are not comparable.")


def _sample_rows(runs: Mapping[str, RunSummary]) -> list[Sequence[str]]:
    """Figures of ``evaluate --samples`` that every run has, of the same extractor and as many samples."""
    files = sorted(set.intersection(*(set(run.evaluations) for run in runs.values())))
    rows: list[Sequence[str]] = []
    for file in files:
        found = [run.evaluations[file] for run in runs.values()]
        counts = {each["images"]["samples"] for each in found if "figures" in each}
        if len(counts) != 1 or not all("figures" in each for each in found):
            continue
        for name in found[0]["figures"]:
            values = [each["figures"].get(name, {}).get("samples", {}).get("value") for each in found]
            says = f"samples ({found[0]['extractor']}), {name.replace('_', ' ')}"
            rows.append((says, *("-" if value is None else f"{value:,.4g}" for value in values)))
    return rows


def _charts(runs: Mapping[str, RunSummary]) -> list[Block]:
    """A chart for each figure, a curve for each run, over minutes of training where they are known."""
    charts: list[Block] = []
    for (stage, figure), (title, unit, caption) in _CHARTS.items():
        rows = {name: run.rows(stage, "held_out") for name, run in runs.items()}
        curves = []
        for name, own in rows.items():
            known = [row for row in own if row.get(figure) is not None]
            minutes = _minutes(runs[name], stage, [row["step"] for row in known])
            if known:
                curves.append(Series(name, minutes, [row[figure] for row in known], dots=True))
        if curves:
            charts.append(Chart(title, "minutes of training", unit, curves, caption))
    return charts


def _minutes(run: RunSummary, stage: str, steps: Sequence[int]) -> list[float]:
    """When steps were taken, by the lines of the log around them."""
    rows = [row for row in run.rows(stage, "train") if row.get("seconds") is not None]
    if not rows:
        return [float(step) for step in steps]
    found = np.interp(steps, [row["step"] for row in rows], [row["seconds"] / 60 for row in rows])
    return [float(each) for each in found]


def _samples(runs: Mapping[str, RunSummary], device: str) -> list[Block]:
    """A grid of each run that has a generator, of the same classes and seeds."""
    rows = []
    for name, run in runs.items():
        if run.folder.prior.is_dir() and run.folder.tokenizer.is_dir():
            picture = _grid(str(run.folder.root), device)
            rows.append((name, embed(picture, f"samples of {name}")))
    return [Rows(rows, "Columns have one seed and one class.")] if rows else []


def _grid(run: str, device: str) -> Image.Image:
    """24 samples, of the first six classes where there are classes."""
    generator = open_generator(run, device)
    n_classes = min(_CLASSES, len(generator.labels))
    labels, each = (list(range(n_classes)), _IMAGES // n_classes) if n_classes else (None, _IMAGES)
    images = generator(labels, each, seed=0, output_type="pt").images
    pixels = generator.tokenizer.preview.of_images(images)
    return image_grid(pixels, _IMAGES // 2, scale=max(1, _SMALL // max(pixels.shape[1:3])))
