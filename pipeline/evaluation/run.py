"""Evaluation of a run: tokenizer and prior on one of its splits."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foundation.errors import ConfigError
from foundation.hardware import usable_device
from foundation.storage import durable
from pipeline.runs.folder import RunFolder

Part = Literal["all", "tokenizer", "prior"]
Split = Literal["validation", "train"]


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Networks that score a tokenizer."""

    extractor: Literal["small", "inception", "dinov2", "none"] = "small"
    """features for rFID and KID; small needs no file, but compares only with itself"""
    weights: str | None = None
    """the extractor's weights: file, folder or hub name; default cached or downloaded"""
    lpips: str | None = None
    """VGG16's weights for LPIPS: a file, standard (cached or downloaded), or random; default no LPIPS"""


def evaluate_run(
    run: str, *, part: Part, judges: Judges, split: Split, device: str, json_file: str | None = None
) -> dict[str, Any]:
    """Score a run on its own data; print a table for each part and write ``evaluation/PART-SPLIT*.json``.

    Args:
        run: the run folder.
        part: ``tokenizer``, ``prior``, or ``all``: both, or the tokenizer alone if there is no prior.
        judges: networks that score the tokenizer.
        split: ``validation`` or ``train``.
        device: ``cpu``, ``cuda``, ...
        json_file: another file for the figures of all parts.

    Returns:
        Part => its figures, as written.

    Raises:
        ConfigError: judges of the tokenizer for the prior alone, an extractor with weights that it does not take, or no
            such device.
        CheckpointError: the run, or the part, is missing or damaged.
    """
    if part == "prior":
        for each in dataclasses.fields(judges):
            value, fix = getattr(judges, each.name), "leave it out, or evaluate the tokenizer too"
            unused, what = value == each.default, "has no effect on the prior, which is scored by its bits"
            ConfigError.unless(unused, what, field=f"--{each.name}", found=value, fix=fix)
    folder = RunFolder(Path(run))
    folder.load_recipe()
    device = usable_device(device)
    found: dict[str, Any] = {}
    if part != "prior":
        found["tokenizer"] = _evaluate_tokenizer(folder, judges, split, device)
    if part == "prior" or (part == "all" and folder.prior.is_dir()):
        found["prior"] = _evaluate_prior(folder, split, device, compare=part == "prior")
    if json_file is not None:
        durable.replace_file(Path(json_file), json.dumps(found, indent=1).encode())
    return found


def _evaluate_prior(folder: RunFolder, split: str, device: str, *, compare: bool) -> dict[str, Any]:
    from pipeline.evaluation.prior import evaluate_run_prior

    evaluation = evaluate_run_prior(folder, split, device)
    if compare:
        _say_differences(folder)
    print(evaluation.table())
    print(f"also in {folder.root / 'evaluation' / f'prior-{split}.json'}")
    return evaluation.as_json()


def _say_differences(folder: RunFolder) -> None:
    from pipeline.runs.images import differences_since

    differences = differences_since(folder, folder.load_recipe())
    if differences:
        print(f"images: {differences}")


def _evaluate_tokenizer(folder: RunFolder, judges: Judges, split: Split, device: str) -> dict[str, Any]:
    from pipeline.evaluation.extractors import named_extractor
    from pipeline.evaluation.tokenizer import evaluate_tokenizer
    from pipeline.runs.images import open_run_split
    from pipeline.runs.models import open_tokenizer
    from stage1_tokenizer.losses.lpips import LPIPS

    recipe = folder.load_recipe()
    tokenizer = open_tokenizer(folder.root, device)
    features = named_extractor(judges.extractor, judges.weights)
    distance = None if judges.lpips is None else LPIPS("" if judges.lpips == "standard" else judges.lpips).to(device)
    images, changes = open_run_split(folder, recipe, split)
    if changes:
        print(f"images: {changes.sentence()}")
    for failure in images.failures[:10]:
        print(f"  left out: {failure.image_id}: {failure.reason}")
    if len(images.failures) > 10:
        print(f"  ... and {len(images.failures) - 10:,} more")
    extractor = features and features.to(device)
    evaluation = evaluate_tokenizer(tokenizer, images, extractor=extractor, lpips=distance)
    print(evaluation.table())
    path = folder.root / "evaluation" / f"tokenizer-{split}-{judges.extractor}.json"
    about = {"metrics": evaluation.metrics(), "notes": evaluation.notes}
    durable.replace_file(path, json.dumps(about, indent=1).encode())
    print(f"also in {path}")
    return about
