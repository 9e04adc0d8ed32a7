"""Evaluation of a run: tokenizer and prior on one of its splits, its samples, its codes."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, get_args

from foundation.arguments import as_path, require_type, shown
from foundation.config import require, to_dict
from foundation.errors import ConfigError
from foundation.hardware import usable_device
from foundation.storage import durable
from pipeline.evaluation.config import Judges, Part, SampleOptions, Split
from pipeline.output_files import output_at
from pipeline.runs.folder import RunFolder

if TYPE_CHECKING:
    from pipeline.engines.stream import Engine


def evaluate_run(
    run: str,
    *,
    part: Part,
    judges: Judges,
    split: Split,
    device: str,
    samples: SampleOptions = SampleOptions(),
    probe: bool = False,
    json_file: str | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Score a run on its own data; print a table for each part and write ``evaluation/PART-*.json``.

    Args:
        run: the run folder.
        part: ``tokenizer``, ``prior``, ``samples``, or ``all``: tokenizer and prior, as far as they are there, and
            samples if an option of ``samples`` is given.
        judges: networks that score the tokenizer and samples.
        split: ``validation`` or ``train``, of the tokenizer and the prior.
        device: ``cpu``, ``cuda``, ...
        samples: which samples, and what they are compared with.
        probe: also train a tiny prior on the codes, which says how learnable they are; see ``probe``.
        json_file: another file for the figures of all parts.
        engine: scores batches; None scores them in this process.

    Returns:
        Part => its figures, as written.

    Raises:
        ConfigError: options that have no effect on the part, an extractor with weights that it does not take, or no
            such device.
        CheckpointError: the run, or the part, is missing or damaged.
    """
    _require_choices(part, split)
    require_type("judges", judges, Judges)
    require_type("samples", samples, SampleOptions)
    _require_effect(part, judges, samples, probe)
    json_path = None if json_file is None else as_path(json_file, "json_file")
    folder = RunFolder(as_path(run, "run"))
    about = {"command": "evaluate", "run": str(folder.root.resolve()), "part": part, "split": split}
    how = {"judges": to_dict(judges), "samples": to_dict(samples), "probe": probe}
    outputs = None if json_path is None else output_at(json_path, {**about, **how})
    parts, device = _parts(folder, part, samples), usable_device(device)
    found: dict[str, Any] = {}
    if "tokenizer" in parts:
        found["tokenizer"] = _evaluate_tokenizer(folder, judges, split, device, engine)
    if probe:
        found["probe"] = _probe(folder, device)
    if "prior" in parts:
        found["prior"] = _evaluate_prior(folder, split, device, engine, compare="tokenizer" not in parts)
    if "samples" in parts:
        found["samples"] = _evaluate_samples(folder, judges, samples, device, engine)
    if json_path is not None and outputs is not None:
        outputs.write(json_path.name, json.dumps(found, indent=1).encode())
    return found


def _parts(folder: RunFolder, part: Part, samples: SampleOptions) -> list[Part]:
    """The parts to evaluate: what was asked for, or what the run has.

    Raises:
        ConfigError: tokenizer or samples of a run that has no images.
    """
    if folder.load_recipe().codes is not None:
        part = "prior" if part == "all" else part
        needing = "--stage" if part != "prior" else "--samples"
        what, fix = "needs images, and this run was trained on codes", "leave it out, or evaluate the tokenizer's run"
        fits = part == "prior" and not samples.is_given
        ConfigError.unless(fits, what, field=needing, found=part, expected="prior", fix=fix)
    if part != "all":
        return [part, "samples"] if samples.is_given and part != "samples" else [part]
    has_prior = folder.prior.is_dir()
    if has_prior and not samples.is_given:
        print("samples: not scored; --samples 2000 draws and scores as many")
    wanted: dict[Part, bool] = {"tokenizer": True, "prior": has_prior, "samples": samples.is_given}
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _require_choices(part: Part, split: Split) -> None:
    for name, value, choices in (("part", part, get_args(Part)), ("split", split, get_args(Split))):
        known = isinstance(value, str) and value in choices
        require(known, name, shown(value), " or ".join(choices))


def _require_effect(part: Part, judges: Judges, samples: SampleOptions, probe: bool) -> None:
    """Refuse options that have no effect on the part.

    Raises:
        ConfigError: naming the option.
    """
    moot = {"prior": [each.name for each in dataclasses.fields(judges)], "samples": ["lpips"]}.get(part, [])
    why = {"prior": "the prior, which is scored by its bits", "samples": "samples, which are no pairs"}
    for name in moot:
        value, fix = getattr(judges, name), "leave it out, or evaluate the tokenizer too"
        what = f"has no effect on {why.get(part)}"
        ConfigError.unless(value == getattr(Judges(), name), what, field=f"--{name}", found=value, fix=fix)
    for each in dataclasses.fields(samples) if part in ("tokenizer", "prior") else ():
        value, what, fix = getattr(samples, each.name), f"has no effect on the {part}", "leave it or --stage out"
        field = f"--{each.name.replace('_', '-')}"
        ConfigError.unless(value == each.default, what, field=field, found=value, fix=fix)
    useful, fix = not probe or part in ("all", "tokenizer"), "leave one of them out"
    ConfigError.unless(useful, f"probes codes, and has no effect on --stage {part}", field="--probe", fix=fix)


def _probe(folder: RunFolder, device: str) -> dict[str, Any]:
    from pipeline.evaluation.probe import probe_run

    probed = probe_run(folder, device)
    print(probed.table())
    print(f"also in {folder.root / 'evaluation' / 'probe.json'}")
    return probed.as_json()


def _evaluate_samples(
    folder: RunFolder, judges: Judges, options: SampleOptions, device: str, engine: Engine | None
) -> dict[str, Any]:
    from pipeline.engines.stream import LocalEngine
    from pipeline.evaluation.extractors import choose_extractor
    from pipeline.evaluation.sample_run import evaluate_run_samples

    recipe = folder.load_recipe()
    extractor = choose_extractor(judges.extractor, judges.weights, recipe.data.preprocess)
    if extractor is None:
        expected = "auto, lite0, inception, dinov2 or small"
        raise ConfigError("is needed to score samples", field="--extractor", found="none", expected=expected)
    return evaluate_run_samples(folder, recipe, options, extractor.to(device), device, engine or LocalEngine())


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
    from pipeline.evaluation.extractors import choose_extractor
    from pipeline.evaluation.reading import print_left_out
    from pipeline.evaluation.tokenizer import evaluate_tokenizer
    from pipeline.runs.images import open_run_split
    from pipeline.runs.models import open_tokenizer
    from stage1_tokenizer.losses.lpips import LPIPS

    recipe = folder.load_recipe()
    tokenizer = open_tokenizer(folder.root, device)
    features = choose_extractor(judges.extractor, judges.weights, recipe.data.preprocess)
    distance = None if judges.lpips is None else LPIPS("" if judges.lpips == "standard" else judges.lpips).to(device)
    images, changes = open_run_split(folder, recipe, split)
    if changes:
        print(f"images: {changes.sentence()}")
    extractor = features and features.to(device)
    evaluation = evaluate_tokenizer(tokenizer, images, extractor=extractor, lpips=distance, engine=engine)
    print_left_out(images)
    print(evaluation.table())
    path = folder.root / "evaluation" / f"tokenizer-{split}-{'none' if features is None else features.name}.json"
    about = {"metrics": evaluation.metrics(), "notes": evaluation.notes}
    durable.replace_file(path, json.dumps(about, indent=1).encode())
    print(f"also in {path}")
    return about
