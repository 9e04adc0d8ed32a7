"""What ``tessera evaluate`` does: both parts of a run, or one, on one of its splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.config import from_dict
from foundation.errors import ConfigError, nearest
from foundation.hardware import usable_device
from foundation.images.image_set import Augment, open_image_sets
from foundation.storage import durable
from pipeline.evaluation.extractors.build import (
    DinoV2Config,
    ExtractorConfig,
    FeatureExtractor,
    InceptionConfig,
    SmallConfig,
    build_extractor,
)
from pipeline.runs.folder import RunFolder
from pipeline.tokenizer_commands import open_tokenizer


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What the tokenizer is scored with."""

    extractor: str = "small"
    """features for rFID and KID: inception, dinov2, small or none"""
    weights: str | None = None
    """the extractor's weights; null takes its cached or downloaded ones"""
    lpips: str | None = None
    """VGG16's weights for LPIPS: a file, standard, or random; null leaves LPIPS out"""


def evaluate_run(
    run: str, *, part: str, judges: Judges, split: str, device: str, json_file: str | None = None
) -> dict[str, Any]:
    """Score a run on its own data; a table for each part, also as ``evaluation/PART-SPLIT*.json``.

    Args:
        run: the run folder.
        part: ``tokenizer``, ``prior``, or ``all``, which leaves the prior out where there is none.
        judges: of the tokenizer.
        split: ``validation`` or ``train``.
        device: where to compute.
        json_file: where the figures of all parts also go.

    Returns:
        part => its figures, as written.

    Raises:
        ConfigError: a value that is not one of the choices.
        CheckpointError: the run, or the part asked for, is not there or damaged.
    """
    folder = RunFolder(Path(run))
    folder.load_recipe()
    for field, value, choices in (("--split", split, ("train", "validation")),
                                  ("--part", part, ("all", "tokenizer", "prior"))):  # fmt: skip
        if value not in choices:
            raise ConfigError("is not one of the choices", field=field, found=repr(value), fix=nearest(value, choices))
    device = usable_device(device)
    found: dict[str, Any] = {}
    if part != "prior":
        found["tokenizer"] = _evaluate_tokenizer(folder, judges, split, device)
    if part == "prior" or (part == "all" and folder.prior.is_dir()):
        found["prior"] = _evaluate_prior(folder, split, device)
    if json_file is not None:
        durable.replace_file(Path(json_file), json.dumps(found, indent=1).encode())
    return found


def _evaluate_prior(folder: RunFolder, split: str, device: str) -> dict[str, Any]:
    from pipeline.evaluation.prior import evaluate_run_prior

    evaluation = evaluate_run_prior(folder, split, device)
    print(evaluation.table())
    print(f"also in {folder.root / 'evaluation' / f'prior-{split}.json'}")
    return evaluation.as_json()


def _evaluate_tokenizer(folder: RunFolder, judges: Judges, split: str, device: str) -> dict[str, Any]:
    from pipeline.evaluation.tokenizer import evaluate_tokenizer
    from stage1_tokenizer.losses.lpips import LPIPS

    recipe = folder.load_recipe()
    tokenizer = open_tokenizer(str(folder.root), device)
    features = named_extractor(judges.extractor, judges.weights)
    distance = None if judges.lpips is None else LPIPS("" if judges.lpips == "standard" else judges.lpips).to(device)
    train, held_out = open_image_sets(recipe.data, augment=Augment(), seed=recipe.seed)
    images = held_out if split == "validation" else train
    evaluation = evaluate_tokenizer(
        tokenizer, images, extractor=None if features is None else features.to(device), lpips=distance
    )
    print(evaluation.table())
    path = folder.root / "evaluation" / f"tokenizer-{split}-{judges.extractor}.json"
    about = {"metrics": evaluation.metrics(), "notes": evaluation.notes}
    durable.replace_file(path, json.dumps(about, indent=1).encode())
    print(f"also in {path}")
    return about


def named_extractor(name: str, weights: str | None) -> FeatureExtractor | None:
    """The extractor of that name; None for ``none``.

    Raises:
        ConfigError: no such extractor, or weights for one that takes none.
        CheckpointError: its weights are not to be had.
    """
    configs: dict[str, type[ExtractorConfig]] = {
        each.type_name: each for each in (InceptionConfig, DinoV2Config, SmallConfig)
    }
    choices = [*configs, "none"]
    if name not in choices:
        raise ConfigError("is not one of the choices", field="--extractor", found=repr(name),
                          fix=nearest(name, choices))  # fmt: skip
    if weights is not None and name in ("none", "small"):
        raise ConfigError("is of no use with this extractor", field="--weights", found=weights,
                          expected=f"nothing with --extractor {name}", fix="leave it out")  # fmt: skip
    if name == "none":
        return None
    return build_extractor(from_dict(configs[name], {} if weights is None else {"weights": weights}, "--extractor"))
