"""Report of a run as one self-contained HTML file."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from PIL import Image

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import read_manifest
from foundation.codes.spec import CodeSpec
from foundation.codes.usage import CodeUsage, count_codes_by_slot, summarize
from foundation.errors import CheckpointError
from foundation.hardware import TokenAccess, usable_device
from foundation.images.inventory import inventory_rows
from foundation.images.preprocess import GRID_GAP
from foundation.storage import durable
from foundation.storage.serialization import read_json
from foundation.training.log import read_metrics
from pipeline.encoding.own_codes import SOURCE
from pipeline.evaluation.prior import kept_evaluation
from pipeline.planning.ledger import read_times, time_rows
from pipeline.report.gallery import gallery_section
from pipeline.report.latents import latent_rows, normal_section
from pipeline.report.plots import (
    adversary_plot,
    class_plot,
    inline_image,
    likelihood_rows,
    picture,
    position_plot,
    prior_plot,
    tokenizer_plot,
    usage_plot,
)
from pipeline.runs.advice import advice
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import differences_since, inventory_of
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.canary import load_canary
from stage1_tokenizer.evaluate import originals_above_reconstructions
from stage1_tokenizer.tokenizer import TokenizerModel

_SAMPLES_FIX = "move that folder away and run tessera run again, which samples again"
_TITLE, _HEAD = " - Tessera</title>", 4096
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --muted: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p.lead, figcaption { color: var(--muted); } figure { margin: 1rem 0; overflow-x: auto; }
img { max-width: 100%; image-rendering: pixelated; } img.plot { image-rendering: auto; background: white; }
table { border-collapse: collapse; } td, th { padding: .25rem 1rem .25rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr { border-bottom: 1px solid var(--line); } pre { overflow-x: auto; font-size: .85rem; }
table.samples tr { border: 0; } table.samples td { padding: 0 0 6px; line-height: 0; }
ul.warnings { color: #b33; }
table.samples th { padding-right: .75rem; text-align: right; font-weight: normal; }
"""


def write_report(folder: RunFolder) -> None:
    """Write ``report.html`` of a finished run.

    Raises:
        CheckpointError: the run is not finished, or has another file of that name.
    """
    _require_ours(folder.report)
    recipe = folder.load_recipe()
    alone = recipe.codes is not None and not folder.tokenizer.is_dir()  # codes without their tokenizer
    tokenizer = None if alone else TokenizerModel.load(folder.tokenizer)
    train, validation = read_metrics(folder.metrics, "tokenizer", "train"), _validation(folder, "tokenizer")
    sections = [] if tokenizer is None else [("Reconstructions", _reconstructions(folder, tokenizer))]
    curves = tokenizer_plot(train, validation) + adversary_plot(train) if train else ""
    codes = TokenDataset(folder.codes, "validation", recipe.machine.tokens)
    usages = {} if codes.spec.latents else _usages(folder, recipe.machine.tokens)
    likelihood = kept_evaluation(folder, "validation", _device(recipe))
    gallery = gallery_section(folder.gallery)
    curves += prior_plot(read_metrics(folder.metrics, "prior", "train"), _validation(folder, "prior"))
    of_codes = [("Use of the codebook", usage_plot(usages))] if usages else []
    if codes.spec.latents and tokenizer is not None:
        of_codes = [("Without the prior", normal_section(tokenizer, codes))]
    sections = [
        ("Samples", _samples(folder)),
        *([("Gallery", gallery)] if gallery else []),
        ("Figures", _figures_table(folder, codes, usages, likelihood)),
        *sections,
        ("Training", _warnings(folder) + curves),
        ("What the prior finds hard", position_plot(likelihood) + class_plot(likelihood)),
        *of_codes,
        ("Data", _data(folder)),
    ]
    sections += _times(folder, recipe)
    sections.append(("Recipe", f"<pre>{html.escape(folder.recipe.read_text(encoding='utf-8'))}</pre>"))
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(recipe.name)}{_TITLE}<style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(recipe.name)}</h1><p class='lead'>{html.escape(recipe.description)}</p>"
        f"{''.join(_section(title, body) for title, body in sections)}</body></html>"
    )
    durable.replace_file(folder.report, page.encode())


def _require_ours(path: Path) -> None:
    """Refuse to replace a file that is no report of a run."""
    if not path.exists():
        return
    ours = path.is_file() and _TITLE.encode() in path.read_bytes()[:_HEAD]
    fix = "move it away: the report of the run gets this name"
    CheckpointError.unless(ours, "is not a report of a run", field=str(path), found="another file", fix=fix)


def _usages(folder: RunFolder, access: TokenAccess) -> dict[str, CodeUsage]:
    """Usage of each codebook in each split, by name; validation last."""
    usages = {}
    for split in ("train", "validation"):
        dataset = TokenDataset(folder.codes, split, access)
        found = count_codes_by_slot(dataset.codes_NT, dataset.spec)
        for name, usage in zip(dataset.spec.slot_names, found, strict=True):
            usages[f"{split}, {name}" if name else split] = usage
    return usages


def _warnings(folder: RunFolder) -> str:
    rows = read_metrics(folder.metrics, kind="warning")
    if not rows:
        return ""
    lines = "".join(f"<li>{row['stage']}, step {row['step']:,}: {html.escape(row['text'])}</li>" for row in rows[-20:])
    return f"<ul class='warnings'>{lines}</ul>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _samples(folder: RunFolder) -> str:
    if not folder.samples.exists():
        fix = f"run tessera run {folder.root}, which samples them"
        raise CheckpointError("the run has no samples yet", field=str(folder.samples), fix=fix)
    if not folder.has_samples():
        raise CheckpointError("the samples are missing or incomplete", field=str(folder.samples), fix=_SAMPLES_FIX)
    grid = Image.open(folder.samples / "grid.png")
    about = read_json(folder.samples / "samples.json", ("labels", "columns"), fix=_SAMPLES_FIX)
    if "shapes" not in about:
        return _sample_rows(folder, grid, about)
    body = ""
    for each in about["shapes"]:
        (height, width), (top, bottom) = each["shape"], each["rows"]
        part = grid.crop((0, top, grid.width, bottom))
        body += f"<h3>{height} x {width} pixels</h3>{_sample_rows(folder, part, about)}"
    return body


def _sample_rows(folder: RunFolder, grid: Image.Image, about: dict[str, Any]) -> str:
    """Samples of one shape: a row for each class, or one picture."""
    labels = about["labels"][:: about["columns"]]
    maps = "" if folder.tokenizer.is_dir() else " They are codes, a colour each: their tokenizer is not known."
    if labels[0] is None:
        return picture(grid, f"New images, sampled without a class.{maps}")
    names = read_manifest(folder.codes)["spec"]["class_names"]
    height = (grid.height + GRID_GAP) // len(labels)
    rows = [grid.crop((0, i * height, grid.width, (i + 1) * height - GRID_GAP)) for i in range(len(labels))]
    body = "".join(
        f"<tr><th>{html.escape(names[label])}</th><td>{inline_image(row, f'samples of class {names[label]}')}</td></tr>"
        for label, row in zip(labels, rows, strict=True)
    )
    return f"<table class='samples'>{body}</table><p class='lead'>New images, sampled by class.{maps}</p>"


def _reconstructions(folder: RunFolder, tokenizer: TokenizerModel) -> str:
    canary = load_canary(folder.tokenizer)
    if canary is None:
        return "<p>No images are stored beside the tokenizer.</p>"
    caption = "Validation images above their reconstructions."
    return picture(originals_above_reconstructions(tokenizer, canary.pixels_BYXC), caption)


def _device(recipe: Recipe) -> str:
    """Device of the run."""
    device = recipe.machine.device
    return usable_device(device if device == "cpu" else "auto")  # a report may be made elsewhere than its run


def _figures_table(
    folder: RunFolder, codes: TokenDataset, usages: dict[str, CodeUsage], likelihood: dict[str, Any]
) -> str:
    tokenizer, prior = _validation(folder, "tokenizer"), _validation(folder, "prior")
    if not prior:
        return "<p>There are no metrics in the run folder.</p>"
    of_tokenizer = _reconstruction_rows(tokenizer) if tokenizer else []  # a finished tokenizer was not trained here
    if codes.spec.latents:
        return _table(of_tokenizer + latent_rows(prior[-1], codes))
    return _table(of_tokenizer + _code_rows(codes.spec, usages, prior, likelihood))


def _code_rows(
    spec: CodeSpec, usages: dict[str, CodeUsage], prior: list[dict[str, Any]], likelihood: dict[str, Any]
) -> list[tuple[str, str]]:
    validation = [usage for name, usage in usages.items() if name.startswith("validation")]
    total, n_entries = summarize(validation), sum(usage.codebook_size for usage in validation)
    last, best = prior[-1], min(row["nats_per_code"] for row in prior)
    bits = sum(slot.n_codes * math.log2(slot.codebook_size) for slot in spec.slots)
    smaller = ""
    if spec.knows_images:
        values = spec.preprocess.height * spec.preprocess.width * spec.preprocess.n_channels
        smaller = f"; {values * spec.preprocess.bits / bits:,.1f}x smaller than pixels"
    return [
        ("Codes in use, validation", f"{total.share_used:.1%} of {n_entries:,}"),
        ("Code perplexity, validation", f"{total.perplexity:,.1f}"),
        ("Codes per image", f"{spec.n_codes} ({bits:,.0f} bits{smaller})"),
        ("Prior, validation bits per code", f"{last['bits_per_code']:.3f}"),
        ("&nbsp;&nbsp;uniform codes need", f"{bits / spec.n_codes:.3f}"),
        ("&nbsp;&nbsp;code frequencies alone need", f"{last['unigram_bits_per_code']:.3f}"),
        ("&nbsp;&nbsp;below code frequencies", f"{last['below_unigram']:.1%}"),
        *likelihood_rows(likelihood),
        ("Prior, validation bits per image", f"{last['bits_per_image']:,.1f}"),
        ("Prior, loss at the end over its best", f"{last['nats_per_code'] / best - 1:+.2%}"),
    ]


def _reconstruction_rows(validation: list[dict[str, Any]]) -> list[tuple[str, str]]:
    last = validation[-1]
    return [
        ("Reconstruction, validation PSNR", f"{last['psnr']:.2f} dB"),
        ("Reconstruction, validation SSIM", f"{last['ssim']:.3f}"),
    ]


def _table(rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{name}</td><td class='number'>{value}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>"


def _data(folder: RunFolder) -> str:
    manifest = read_manifest(folder.codes)
    found = inventory_of(folder)
    recipe = folder.load_recipe()
    differences = differences_since(folder, recipe)
    said = [*(inventory_rows(found) if found else ()), *(("advice", each) for each in advice(recipe, found))]
    rows = [(html.escape(name), html.escape(text)) for name, text in said]
    rows += [(f"codes of {split}", f"{entry['rows']:,} rows") for split, entry in manifest["splits"].items()]
    if differences:
        rows.append(("when this report was written", html.escape(differences)))
    own = folder.codes / SOURCE
    if own.is_file():
        about = read_json(own, ("source", "notes"), fix="move the folder away and run the command again")
        rows += [("codes from", html.escape(about["source"])), *(("", html.escape(note)) for note in about["notes"])]
    bad = [
        f"<tr><td>{html.escape(each['image_id'])}</td><td>{html.escape(each['reason'])}</td></tr>"
        for entry in manifest["splits"].values()
        for each in entry["failures"]
    ]
    listed = f"<h3>Unusable images ({len(bad)})</h3><table>{''.join(bad[:200])}</table>" if bad else ""
    return _table(rows) + listed


def _times(folder: RunFolder, recipe: Recipe) -> list[tuple[str, str]]:
    """A section with the time of each part until this report, if it is known."""
    times = read_times(folder.times)
    if not times:
        return []
    budget = "" if recipe.budget is None else f"<p>The budget was {html.escape(recipe.budget)}.</p>"
    head = "<tr><th></th><th>expected</th><th>taken</th></tr>"
    cells = "".join(
        f"<tr><td>{part}</td><td class='number'>{expected}</td><td class='number'>{taken}</td></tr>"
        for part, expected, taken in time_rows(times)
    )
    return [("Time", f"{budget}<table>{head}{cells}</table>")]


def _validation(folder: RunFolder, stage: str) -> list[dict[str, Any]]:
    """Read the complete evaluations of a stage; values that were not finite become NaN."""
    needed = "psnr" if stage == "tokenizer" else "nats_per_code"
    rows = [row for row in read_metrics(folder.metrics, stage, "held_out") if needed in row]
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
