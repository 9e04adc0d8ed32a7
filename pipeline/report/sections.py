"""Sections of a report: each reads its part of a run, and is empty where the run does not have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import MANIFEST, read_manifest
from foundation.codes.usage import CodeUsage
from foundation.errors import CheckpointError
from foundation.images.inventory import inventory_rows
from foundation.images.preprocess import GRID_GAP, image_grid, to_unit_range
from foundation.storage.serialization import read_json
from pipeline.encoding.own_codes import SOURCE
from pipeline.planning.ledger import time_rows
from pipeline.report.blocks import Block, Film, Listing, Notes, Picture, Rows, Section, Slider, Table, embed
from pipeline.report.curves import frequency_chart, prior_charts, tokenizer_charts
from pipeline.report.figures import class_bars, fact_rows, guidance_chart, position_maps, quality_rows, sample_table
from pipeline.report.gallery import gallery_pictures
from pipeline.report.latents import NORMAL, latent_rows, normal_picture
from pipeline.report.summary import STAGES, RunSummary
from pipeline.runs.advice import advice
from pipeline.runs.folder import RunFolder
from pipeline.runs.found_images import inventory_of
from pipeline.runs.images import differences_since
from stage1_tokenizer.canary import load_canary
from stage1_tokenizer.tokenizer import TokenizerModel

SAMPLES_FIX = "move that folder away and run tessera run again, which samples again"
_MOST_FRAMES, _FRAME_PIXELS = 10, 220_000
_MOST_FAILURES = 200
_NONE: Mapping[str, Any] = {}
_SMALL = 64
"""pixels; smaller images are shown larger"""


def samples_section(run: RunSummary) -> Section:
    """The samples, large, by class or shape."""
    folder = run.folder
    if not folder.has_samples():
        return Section("New images")
    grid = Image.open(folder.samples / "grid.png")
    about = read_json(folder.samples / "samples.json", ("labels", "columns"), fix=SAMPLES_FIX)
    names = read_manifest(folder.codes)["spec"]["class_names"]
    blocks: list[Block] = []
    for each in about.get("shapes", [{"shape": None, "rows": (0, grid.height)}]):
        top, bottom = each["rows"]
        shape = "" if each["shape"] is None else "{} x {} pixels. ".format(*each["shape"])
        blocks.append(_by_class(grid.crop((0, top, grid.width, bottom)), about, names, shape))
    maps = "" if folder.tokenizer.is_dir() else " Each colour is a code: their tokenizer is not known."
    return Section("New images", blocks, f"{run.sentence()}{maps}", f"tessera sample {folder.root}")


def _by_class(grid: Image.Image, about: Mapping[str, Any], names: list[str], shape: str) -> Block:
    labels = about["labels"][:: about["columns"]]
    if labels[0] is None:
        return Picture(embed(grid, "new images"), f"{shape}Sampled without a class.")
    height = (grid.height + GRID_GAP) // len(labels)
    rows = [grid.crop((0, i * height, grid.width, (i + 1) * height - GRID_GAP)) for i in range(len(labels))]
    embedded = [(names[i], embed(row, f"new images of class {names[i]}")) for i, row in zip(labels, rows, strict=True)]
    return Rows(embedded, f"{shape}Sampled by class; nothing was picked.")


def facts_section(
    run: RunSummary, usages: Mapping[str, CodeUsage] = _NONE, likelihood: Mapping[str, Any] = _NONE
) -> Section:
    """What was trained, and how good it is."""
    facts = Table(fact_rows(run), caption="What was trained.")
    rows = quality_rows(run, usages, likelihood)
    quality = [Table(rows, ("", "validation", ""), "Figures of the last evaluation.")] if rows else []
    return Section("Figures", [facts, *quality], command=f"tessera evaluate {run.folder.root}")


def warnings_section(run: RunSummary) -> Section:
    """Warnings of the training."""
    return Section("Warnings", [Notes(run.warnings[-20:], are_warnings=True)] if run.warnings else [])


def reconstruction_section(run: RunSummary, tokenizer: TokenizerModel | None) -> Section:
    """Images that were held out, under their reconstructions."""
    canary = None if tokenizer is None else load_canary(run.folder.tokenizer)
    if tokenizer is None or canary is None:
        return Section("Reconstructions")
    images = to_unit_range(canary.pixels_BYXC).to(next(tokenizer.parameters()).device)
    decoded = tokenizer.preview.of_images(tokenizer.decode(tokenizer.encode(images)))
    scale, columns = max(1, _SMALL // max(canary.pixels_BYXC.shape[1:3])), -(-len(decoded) // 2)
    grids = [image_grid(each, columns, scale=scale) for each in (tokenizer.preview(canary.pixels_BYXC), decoded)]
    names = ("originals", "reconstructions")
    first, second = (embed(grid, f"{name} of validation images") for grid, name in zip(grids, names, strict=True))
    codes = "" if run.spec is None else " through their codes"
    caption = f"Validation images, and what the tokenizer makes of them{codes}. Move the handle to compare."
    command = f"tessera reconstruct {run.folder.root} IMAGES"
    return Section("Reconstructions", [Slider(first, second, names, caption)], command=command)


def training_section(run: RunSummary) -> Section:
    """Curves of both stages, and pictures of the evaluations."""
    blocks: list[Block] = []
    for stage in STAGES:
        train, validation = run.rows(stage, "train"), run.rows(stage, "held_out")
        charts = tokenizer_charts if stage == "tokenizer" else prior_charts
        blocks += [*charts(train, validation), *_film(run.folder, stage)]
    return Section("Training", blocks, command=f"tessera run {run.folder.root}")


def _film(folder: RunFolder, stage: str) -> list[Film]:
    """The pictures of the evaluations of a stage, at most ten."""
    paths = sorted(folder.previews(stage).glob("step-*.png"))
    if len(paths) < 2:
        return []
    chosen = sorted({round(i) for i in np.linspace(0, len(paths) - 1, min(len(paths), _MOST_FRAMES))})
    frames = []
    for i in chosen:
        step = int(paths[i].stem.split("-")[1])
        frames.append((f"step {step:,}", embed(Image.open(paths[i]), f"{stage} at step {step:,}", _FRAME_PIXELS)))
    says = {
        "tokenizer": "Validation images above their reconstructions, as training went on.",
        "prior": "Samples of the same random numbers, as training went on.",
    }
    return [Film(f"{stage.capitalize()} over training", frames, says[stage])]


def likelihood_section(run: RunSummary, likelihood: Mapping[str, Any]) -> Section:
    """What the prior finds hard: by position and by class."""
    blocks: list[Block] = [*position_maps(likelihood), *class_bars(likelihood)]
    command = f"tessera evaluate {run.folder.root} --stage prior"
    return Section("What the prior finds hard", blocks, "Bits that validation codes take.", command)


def usage_section(usages: Mapping[str, CodeUsage]) -> Section:
    """Frequencies of the codes."""
    return Section("Use of the codebook", [frequency_chart(usages)] if usages else [])


def latents_section(tokenizer: TokenizerModel | None, codes: TokenDataset) -> Section:
    """Of a continuous tokenizer: images of random latents, and how far its own latents are from those."""
    if not codes.spec.latents:
        return Section("Without the prior")
    blocks: list[Block] = [Table(latent_rows(codes), caption="Latents of validation images.")]
    if tokenizer is not None:
        blocks.insert(0, Picture(embed(normal_picture(tokenizer), "images of random latents"), NORMAL))
    return Section("Without the prior", blocks)


def judged_section(run: RunSummary) -> Section:
    """Figures of samples, their nearest training images, and the sweep of guidance, where commands made them."""
    blocks: list[Block] = []
    folder = run.folder.root / "evaluation"
    for name, found in run.evaluations.items():
        if name.startswith("samples-") and "figures" in found:
            blocks += [sample_table(found), Notes(found["notes"])]
            picture = folder / f"{name}.png"
            if picture.is_file():
                caption = (
                    "The samples nearest to training images, at the left, each beside its nearest ones. A sample that"
                    " is one of them is a copy."
                )
                blocks.append(Picture(embed(Image.open(picture), "samples beside training images"), caption))
    if "tried" in run.evaluations.get("guidance", {}):
        blocks.append(guidance_chart(run.evaluations["guidance"]))
    root = run.folder.root
    lead = "" if blocks else "Not measured yet."
    missing: list[Block] = [Notes([f"tessera evaluate {root} --samples 2000", f"tessera tune-guidance {root}"])]
    command = f"tessera evaluate {root} --samples 2000" if blocks else ""
    return Section("Quality of the samples", blocks or (missing if run.folder.has_samples() else []), lead, command)


def edits_section(run: RunSummary) -> Section:
    """Completions, inpainting, variations and other classes."""
    pictures = gallery_pictures(run.folder.gallery)
    blocks = [Picture(embed(image, caption), caption, wide=False) for image, caption in pictures]
    return Section("Edits", blocks, command=f"tessera edit inpaint {run.folder.root} IMAGE --mask MASK")


def data_section(run: RunSummary) -> Section:
    """What was found, used and left out."""
    folder, recipe = run.folder, run.recipe
    found, rows = inventory_of(folder), []
    rows += inventory_rows(found) if found else []
    rows += [("advice", each) for each in advice(recipe, found)] if found else []
    failures: list[tuple[str, str]] = []
    if (folder.codes / MANIFEST).is_file():
        splits = read_manifest(folder.codes)["splits"]
        rows += [(f"codes of {split}", f"{entry['rows']:,} rows") for split, entry in splits.items()]
        failures = [(each["image_id"], each["reason"]) for entry in splits.values() for each in entry["failures"]]
    differences = differences_since(folder, recipe)
    rows += [("when this report was written", differences)] if differences else []
    if (folder.codes / SOURCE).is_file():
        about = read_json(folder.codes / SOURCE, ("source", "notes"), fix="move the folder away and run again")
        rows += [("codes from", about["source"]), *(("", note) for note in about["notes"])]
    blocks: list[Block] = [Table(rows, numeric=False)] if rows else []
    if failures:
        caption = f"{len(failures):,} unusable image{'' if len(failures) == 1 else 's'}."
        blocks.append(Table(failures[:_MOST_FAILURES], ("image", "reason"), caption, numeric=False))
    return Section("Data", blocks)


def time_section(run: RunSummary) -> Section:
    """The time of each part until this report."""
    if not run.times:
        return Section("Time")
    caption = "" if run.recipe.budget is None else f"The budget was {run.recipe.budget}."
    return Section("Time", [Table(time_rows(run.times), ("", "expected", "taken"), caption)])


def recipe_section(run: RunSummary) -> Section:
    """The recipe, which makes the run again."""
    text = run.folder.recipe.read_text(encoding="utf-8")
    return Section("Recipe", [Listing("recipe.yaml", text)], command=f"tessera run {run.folder.recipe}")


def require_samples(folder: RunFolder) -> None:
    """Refuse a folder of samples that lacks files.

    Raises:
        CheckpointError: naming it.
    """
    if folder.samples.exists() and not folder.has_samples():
        raise CheckpointError("the samples are missing or incomplete", field=str(folder.samples), fix=SAMPLES_FIX)
