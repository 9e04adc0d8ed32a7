"""The share of a training's time that its evaluations take, at the settings of recipes.

A recipe is trained for some steps, with its batches, its number of validation images and its previews; the share is
that of all its steps and evaluations at the median time of each. Recipes whose images are not part of a package train
on noise of the recipe's size, of which half, and enough for an evaluation, are held out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foundation.images.config import Preprocess
from foundation.training.config import FitConfig
from foundation.training.evaluation import SECONDS
from foundation.training.log import read_metrics
from pipeline.commands.start import start_run
from pipeline.runs.recipe import load_recipe

RECIPES = ("digits", "cifar10", "pictures", "folder")
_FEWEST = 40
"""held-out images of a folder of noise"""


def main() -> None:
    """Print a table, and write its rows with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, help=f"built-in recipes; default {' '.join(RECIPES)}")
    parser.add_argument("--steps", type=int, default=30, help="training steps of each stage")
    parser.add_argument("--quick", action="store_true", help="six steps")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    rows = []
    print(f"{'recipe':10} {'stage':10} {'step':>10} {'evaluation':>11} {'images':>7} {'share':>7}")
    for name in arguments.recipes:
        for row in measure(name, 6 if arguments.quick else arguments.steps):
            rows.append(row)
            print(
                f"{name:10} {row['stage']:10} {row['step']:>8.3f} s {row['evaluation']:>9.2f} s"
                f" {row['images']:>7,} {row['share']:>7.1%}",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def measure(name: str, steps: int) -> list[dict[str, Any]]:
    """A row for each stage of a recipe."""
    recipe = load_recipe(name)
    fits = {stage: getattr(recipe, stage).training.fit for stage in ("tokenizer", "prior")}
    with tempfile.TemporaryDirectory() as temporary:
        overrides: dict[str, Any] = {"budget": None, "open": []}
        for stage in fits:
            lengths = {"steps": steps, "evaluate_every": max(1, steps // 3), "log_every": 1, "checkpoint_every": steps}
            overrides |= {f"{stage}.training.fit.{field}": value for field, value in lengths.items()}
        if recipe.data.source.type_name != "digits":
            n_images = int(2.3 * max(_FEWEST, *(each.evaluate_images or 0 for each in fits.values())))
            paint(Path(temporary, "images"), n_images, recipe.data.preprocess)
            source = {"type": "folder", "path": str(Path(temporary, "images"))}
            overrides |= {"data.source": source, "data.validation_share": 0.5}
        job = start_run(name, str(Path(temporary, "run")), overrides)
        job.train_tokenizer()
        job.encode()
        job.train_prior()
        n_validation, metrics = len(job.run.images["validation"]), job.run.folder.metrics
        return [row_of(metrics, stage, fit, fit.n_evaluated(n_validation)) for stage, fit in fits.items()]


def row_of(metrics: Path, stage: str, fit: FitConfig, n_images: int) -> dict[str, Any]:
    """Median seconds of a step and an evaluation, and the share of all evaluations of a training as long as ``fit``."""
    train = read_metrics(metrics, stage, "train")
    evaluations = {row["step"]: row[SECONDS] for row in read_metrics(metrics, stage, "held_out")}
    pairs = itertools.pairwise(train)
    step = statistics.median(b["seconds"] - a["seconds"] for a, b in pairs if b["step"] not in evaluations)
    evaluation = statistics.median(seconds for at, seconds in evaluations.items() if at > 0)
    spent = fit.n_evaluations * evaluation
    share = spent / (spent + fit.steps * step)
    return {"stage": stage, "step": step, "evaluation": evaluation, "images": n_images, "share": share}


def paint(folder: Path, n_images: int, preprocess: Preprocess) -> None:
    """Write images of noise, smooth enough for a decoder of JPEG."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n_images):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        size = (preprocess.width, preprocess.height)
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
