"""``report.html``: one self-contained file that shows a run."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from foundation import durable
from foundation.code_usage import CodeUsage, count_codes
from foundation.errors import CheckpointError
from foundation.images import GRID_GAP
from foundation.json_files import read_json
from foundation.log import read_metrics
from foundation.token_dataset import TokenDataset, read_manifest
from pipeline.reconstruct import originals_above_reconstructions
from pipeline.run_folder import RunFolder
from stage1_tokenizer.canary import load_canary
from stage1_tokenizer.tokenizer import TokenizerModel

_SAMPLES_FIX = "delete that folder and run tessera run again: they are drawn again"
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
table.samples th { padding-right: .75rem; text-align: right; font-weight: normal; }
"""


def write_report(folder: RunFolder) -> None:
    """Write ``report.html`` from what the run folder holds.

    Args:
        folder: a finished run.
    """
    recipe = folder.load_recipe()
    tokenizer = TokenizerModel.load(folder.tokenizer)
    usage = {
        split: count_codes(TokenDataset(folder.codes, split).codes_NT, tokenizer.quantizer.codebook_size)
        for split in ("train", "validation")
    }
    sections = [
        f"<h1>{html.escape(recipe.name)}</h1><p class='lead'>{html.escape(recipe.description)}</p>",
        _section("Samples", _samples(folder)),
        _section("Figures", _figures_table(folder, usage["validation"])),
        _section("Reconstructions", _reconstructions(folder, tokenizer)),
        _section("Training", _tokenizer_plot(folder) + _prior_plot(folder)),
        _section("Use of the codebook", _usage_plot(usage)),
        _section("Data", _data(folder)),
        _section("Recipe", f"<pre>{html.escape(folder.recipe.read_text())}</pre>"),
    ]  # fmt: skip
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(recipe.name)} - Tessera</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>"
    )
    durable.replace_file(folder.report, page.encode())


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _samples(folder: RunFolder) -> str:
    if not folder.has_samples():
        raise CheckpointError("the samples are missing or incomplete", field=str(folder.samples), fix=_SAMPLES_FIX)
    grid = Image.open(folder.samples / "grid.png")
    about = read_json(folder.samples / "samples.json", ("labels", "columns"), fix=_SAMPLES_FIX)
    labels = about["labels"][:: about["columns"]]
    if labels[0] is None:
        return _picture(grid, "New images, sampled without a class.")
    names = read_manifest(folder.codes)["spec"]["class_names"]
    height = (grid.height + GRID_GAP) // len(labels)
    rows = [grid.crop((0, i * height, grid.width, (i + 1) * height - GRID_GAP)) for i in range(len(labels))]
    body = "".join(
        f"<tr><th>{html.escape(names[label])}</th><td>{_image(row, f'samples of class {names[label]}')}</td></tr>"
        for label, row in zip(labels, rows, strict=True)
    )
    return f"<table class='samples'>{body}</table><p class='lead'>New images, sampled by class.</p>"


def _reconstructions(folder: RunFolder, tokenizer: TokenizerModel) -> str:
    canary = load_canary(folder.tokenizer)
    if canary is None:
        return "<p>No images are stored beside the tokenizer.</p>"
    caption = "Held-out images above what the tokenizer makes of them from their codes alone."
    return _picture(originals_above_reconstructions(tokenizer, canary.pixels_BYXC), caption)


def _figures_table(folder: RunFolder, usage: CodeUsage) -> str:
    tokenizer, prior = _held_out(folder, "tokenizer"), _held_out(folder, "prior")
    if not tokenizer or not prior:
        return "<p>There are no metrics in the run folder.</p>"
    spec = read_manifest(folder.codes)["spec"]
    last, best = prior[-1], min(row["nats_per_code"] for row in prior)
    pixels = spec["preprocess"]["height"] * spec["preprocess"]["width"]
    channels = 3 if spec["preprocess"]["mode"] == "RGB" else 1
    n_codes = round(last["bits_per_image"] / last["bits_per_code"]) if last["bits_per_code"] else 0
    bits = n_codes * math.log2(len(usage.counts_V))
    rows = [
        ("Reconstruction, held-out PSNR", f"{tokenizer[-1]['psnr']:.2f} dB"),
        ("Codes in use, held-out", f"{usage.share_used:.1%} of {len(usage.counts_V):,}"),
        ("Code perplexity, held-out", f"{usage.perplexity:,.1f}"),
        ("Codes per image", f"{n_codes} ({bits:,.0f} bits; {pixels * channels * 8 / bits:,.1f}x smaller than pixels)"),
        ("Prior, held-out bits per code", f"{last['bits_per_code']:.3f}"),
        ("&nbsp;&nbsp;a code of equal chances needs", f"{math.log2(len(usage.counts_V)):.3f}"),
        ("&nbsp;&nbsp;code frequencies alone need", f"{last['unigram_bits_per_code']:.3f}"),
        ("&nbsp;&nbsp;below code frequencies", f"{last['below_unigram']:.1%}"),
        ("Prior, held-out bits per image", f"{last['bits_per_image']:,.1f}"),
        ("Prior, loss at the end over its best", f"{last['nats_per_code'] / best - 1:+.2%}"),
    ]
    body = "".join(f"<tr><td>{name}</td><td class='number'>{value}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>"


def _tokenizer_plot(folder: RunFolder) -> str:
    train, held_out = read_metrics(folder.metrics, "tokenizer", "train"), _held_out(folder, "tokenizer")
    if not train or not held_out:
        return ""
    figure, (left, right) = _panels(2)
    left.semilogy(*_series(train, "loss_pixel"), label="training", linewidth=1)
    left.set(title="Tokenizer: pixel loss", xlabel="step")
    left.legend()
    right.plot(*_series(held_out, "psnr"), marker=".", label="PSNR, dB")
    right.set(title="Tokenizer, held-out", xlabel="step", ylabel="PSNR, dB")
    share = right.twinx()
    share.plot(*_series(held_out, "code_usage"), marker=".", color="tab:orange", label="codes in use")
    share.set(ylabel="share of codes in use", ylim=(0, 1.02))
    return _plot(figure, "Left: loss while training. Right: reconstruction (blue) and codebook use (orange).")


def _prior_plot(folder: RunFolder) -> str:
    train, held_out = read_metrics(folder.metrics, "prior", "train"), _held_out(folder, "prior")
    if not train or not held_out:
        return ""
    figure, (axis,) = _panels(1)
    steps, nats = _series(train, "loss")
    axis.plot(steps, np.asarray(nats, float) / math.log(2), linewidth=1, label="training (with dropout)")
    axis.plot(*_series(held_out, "bits_per_code"), marker=".", label="held-out")
    axis.axhline(held_out[-1]["unigram_bits_per_code"], linestyle="--", color="gray", label="code frequencies alone")
    axis.set(title="Prior: bits per code", xlabel="step")
    axis.legend()
    return _plot(figure, "Lower is better; a held-out curve that turns up is a prior that memorises.")


def _usage_plot(usage: dict[str, CodeUsage]) -> str:
    figure, axes = _panels(len(usage))
    for axis, (split, counts) in zip(axes, usage.items(), strict=True):
        ordered = np.sort(counts.counts_V)[::-1] / counts.counts_V.sum()
        axis.fill_between(np.arange(len(ordered)), ordered, step="mid")
        title = f"{split}: {counts.share_used:.1%} used, perplexity {counts.perplexity:,.0f}"
        axis.set(title=title, xlabel="codes, most frequent first", ylabel="share of all codes", yscale="log")
    return _plot(figure, "A flat top with a steep end means that the codebook is well used.")


def _data(folder: RunFolder) -> str:
    manifest = read_manifest(folder.codes)
    rows = []
    for split, entry in manifest["splits"].items():
        rows.append(f"<tr><td>{split}</td><td class='number'>{entry['rows']:,} rows</td></tr>")
    bad = [
        f"<tr><td>{html.escape(each['image_id'])}</td><td>{html.escape(each['reason'])}</td></tr>"
        for entry in manifest["splits"].values()
        for each in entry["failures"]
    ]
    listed = f"<h3>Unusable images ({len(bad)})</h3><table>{''.join(bad[:200])}</table>" if bad else ""
    return f"<table>{''.join(rows)}</table>{listed}"


def _held_out(folder: RunFolder, stage: str) -> list[dict[str, Any]]:
    """The evaluations of a stage, whole rows only; what was not finite is shown as such."""
    needed = "psnr" if stage == "tokenizer" else "nats_per_code"
    rows = [row for row in read_metrics(folder.metrics, stage, "held_out") if needed in row]
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def _series(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[Any]]:
    return [row["step"] for row in rows], [row[name] for row in rows]


def _panels(n: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * n if n > 1 else 6.4, 3.2), layout="constrained")
    return figure, figure.subplots(1, n, squeeze=False)[0]


def _plot(figure: Any, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"<figure>{_inline(buffer.getvalue(), caption, 'plot')}<figcaption>{caption}</figcaption></figure>"


def _picture(image: Image.Image, caption: str) -> str:
    return f"<figure>{_image(image, caption)}<figcaption>{caption}</figcaption></figure>"


def _image(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return _inline(buffer.getvalue(), alt, "pixels")


def _inline(png: bytes, alt: str, kind: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img class='{kind}' alt='{html.escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"
