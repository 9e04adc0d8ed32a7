"""Report of a run as one self-contained HTML file, while it trains and when it is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import MANIFEST
from foundation.codes.usage import CodeUsage, count_codes_by_slot
from foundation.errors import CheckpointError
from foundation.hardware import TokenAccess, usable_device
from foundation.storage import durable
from pipeline.evaluation.prior import kept_evaluation
from pipeline.report.blocks import Section
from pipeline.report.page import is_page, render_page
from pipeline.report.sections import (
    data_section,
    edits_section,
    facts_section,
    judged_section,
    latents_section,
    likelihood_section,
    recipe_section,
    reconstruction_section,
    require_samples,
    samples_section,
    time_section,
    training_section,
    usage_section,
    warnings_section,
)
from pipeline.report.summary import RunSummary
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.tokenizer import TokenizerModel


def write_report(folder: RunFolder) -> None:
    """Write ``report.html`` of a finished run.

    Raises:
        CheckpointError: the run is not finished, or has another file of that name.
    """
    require_ours(folder.report)
    require_samples(folder)
    run = RunSummary(folder)
    if not folder.has_samples():
        fix = f"run tessera run {folder.root}, which samples them"
        raise CheckpointError("the run has no samples yet", field=str(folder.samples), fix=fix)
    tokenizer = TokenizerModel.load(folder.tokenizer) if folder.tokenizer.is_dir() else None
    codes = TokenDataset(folder.codes, "validation", run.recipe.machine.tokens)
    usages = {} if codes.spec.latents else count_usages(folder, run.recipe.machine.tokens)
    likelihood = kept_evaluation(folder, "validation", _device(run.recipe))
    sections = [
        samples_section(run),
        facts_section(run, usages, likelihood),
        reconstruction_section(run, tokenizer),
        edits_section(run),
        judged_section(run),
        latents_section(tokenizer, codes),
        *_of_training(run),
        likelihood_section(run, likelihood),
        usage_section(usages),
        data_section(run),
        time_section(run),
        recipe_section(run),
    ]
    _write(run, sections)


def write_progress(folder: RunFolder) -> None:
    """Write ``report.html`` of a run that trains: curves, pictures and figures so far; no network is loaded.

    Raises:
        CheckpointError: the run has another file of that name.
    """
    require_ours(folder.report)
    run = RunSummary(folder)
    sections = [
        facts_section(run),
        *_of_training(run),
        time_section(run),
        recipe_section(run),
    ]
    _write(run, sections, lead=run.state.capitalize() + ".")


def _of_training(run: RunSummary) -> list[Section]:
    return [warnings_section(run), training_section(run)]


def _write(run: RunSummary, sections: list[Section], lead: str = "") -> None:
    lead = f"{run.recipe.description} {lead}".strip()
    page = render_page(run.recipe.name, lead, sections, renewed=not run.folder.has_samples())
    durable.replace_file(run.folder.report, page)


def require_ours(path: Path) -> None:
    """Refuse to replace a file that is no page of ours.

    Raises:
        CheckpointError: naming it.
    """
    fix = "move it away: the report of the run gets this name"
    ours = not path.exists() or is_page(path)
    CheckpointError.unless(ours, "is not a report of a run", field=str(path), found="another file", fix=fix)


def count_usages(folder: RunFolder, access: TokenAccess) -> dict[str, CodeUsage]:
    """Usage of each codebook in each split, by name; validation last. Empty before codes are complete."""
    usages: dict[str, Any] = {}
    for split in ("train", "validation") if (folder.codes / MANIFEST).is_file() else ():
        dataset = TokenDataset(folder.codes, split, access)
        found = count_codes_by_slot(dataset.codes_NT, dataset.spec)
        for name, usage in zip(dataset.spec.slot_names, found, strict=True):
            usages[f"{split}, {name}" if name else split] = usage
    return usages


def _device(recipe: Recipe) -> str:
    """Device of the run."""
    device = recipe.machine.device
    return usable_device(device if device == "cpu" else "auto")  # a report may be made elsewhere than its run
