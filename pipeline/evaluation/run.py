"""Evaluation of a run: tokenizer and prior on one of its splits."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from foundation.arguments import as_path, require_type, shown
from foundation.config import check_types, require, to_dict
from foundation.errors import ConfigError
from foundation.hardware import usable_device
from foundation.storage import durable
from pipeline.output_files import output_at
from pipeline.runs.folder import RunFolder

if TYPE_CHECKING:
    from pipeline.engines.stream import Engine

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

    def __post_init__(self) -> None:
        check_types(self)


def evaluate_run(
    run: str,
    *,
    part: Part,
    judges: Judges,
    split: Split,
    device: str,
    json_file: str | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Score a run on its own data; print a table for each part and write ``evaluation/PART-SPLIT*.json``.

    Args:
        run: the run folder.
        part: ``tokenizer``, ``prior``, or ``all``: both, or the tokenizer alone if there is no prior.
        judges: networks that score the tokenizer.
        split: ``validation`` or ``train``.
        device: ``cpu``, ``cuda``, ...
        json_file: another file for the figures of all parts.
        engine: scores batches; None scores them in this process.

    Returns:
        Part => its figures, as written.

    Raises:
        ConfigError: judges of the tokenizer for the prior alone, an extractor with weights that it does not take, or no
            such device.
        CheckpointError: the run, or the part, is missing or damaged.
    """
    for name, value, choices in (("part", part, get_args(Part)), ("split", split, get_args(Split))):
        known = isinstance(value, str) and value in choices
        require(known, name, shown(value), " or ".join(choices))
    require_type("judges", judges, Judges)
    if part == "prior":
        for each in dataclasses.fields(judges):
            value, fix = getattr(judges, each.name), "leave it out, or evaluate the tokenizer too"
            unused, what = value == each.default, "has no effect on the prior, which is scored by its bits"
            ConfigError.unless(unused, what, field=f"--{each.name}", found=value, fix=fix)
    json_path = None if json_file is None else as_path(json_file, "json_file")
    folder = RunFolder(as_path(run, "run"))
    about = {"command": "evaluate", "run": str(folder.root.resolve()), "part": part, "split": split}
    outputs = None if json_path is None else output_at(json_path, {**about, "judges": to_dict(judges)})
    own, device = folder.load_recipe().codes is not None, usable_device(device)
    if own and part == "tokenizer":
        what, fix = "needs images, and this run was trained on codes", "leave it out, or evaluate the tokenizer's run"
        raise ConfigError(what, field="--stage", found=part, expected="prior", fix=fix)
    part = "prior" if own else part
    found: dict[str, Any] = {}
    if part != "prior":
        found["tokenizer"] = _evaluate_tokenizer(folder, judges, split, device, engine)
    if part == "prior" or (part == "all" and folder.prior.is_dir()):
        found["prior"] = _evaluate_prior(folder, split, device, engine, compare=part == "prior")
    if json_path is not None and outputs is not None:
        outputs.write(json_path.name, json.dumps(found, indent=1).encode())
    return found


def _evaluate_prior(
    folder: RunFolder, split: str, device: str, engine: Engine | None, *, compare: bool
) -> dict[str, Any]:
    from pipeline.evaluation.prior import evaluate_run_prior

    evaluation = evaluate_run_prior(folder, split, device, engine)
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


def _evaluate_tokenizer(
    folder: RunFolder, judges: Judges, split: Split, device: str, engine: Engine | None
) -> dict[str, Any]:
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
    extractor = features and features.to(device)
    evaluation = evaluate_tokenizer(tokenizer, images, extractor=extractor, lpips=distance, engine=engine)
    for failure in images.failures[:10]:
        print(f"  left out: {failure.image_id}: {failure.reason}")
    if len(images.failures) > 10:
        print(f"  ... and {len(images.failures) - 10:,} more")
    print(evaluation.table())
    path = folder.root / "evaluation" / f"tokenizer-{split}-{judges.extractor}.json"
    about = {"metrics": evaluation.metrics(), "notes": evaluation.notes}
    durable.replace_file(path, json.dumps(about, indent=1).encode())
    print(f"also in {path}")
    return about
