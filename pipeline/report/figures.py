"""Tables of figures in a report: reconstruction, codes, likelihood, samples, guidance, time and data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from foundation.codes.spec import CodeSpec
from foundation.codes.usage import CodeUsage, summarize
from pipeline.evaluation.sample_table import LABELS, SHARES
from pipeline.report.blocks import Bar, Bars, HeatMap, Table
from pipeline.report.charts import Chart, Series
from pipeline.report.summary import RunSummary, codes_in_words, millions
from pipeline.runs.duration import duration

_NONE: Mapping[str, Any] = {}
_CLASSES_SHOWN = 40


def fact_rows(run: RunSummary) -> list[tuple[str, str]]:
    """What was trained, on what, how long."""
    recipe, spec, rows = run.recipe, run.spec, []
    for stage in run.parameters:
        taken, _ = run.steps(stage)
        size = run.fit(stage).batch_size
        rows.append((stage, f"{millions(run.parameters[stage])} parameters, {taken:,} steps of {size}"))
    if spec is not None:
        rows.append(("codes of an image", codes_in_words(spec)))
        if spec.knows_images:
            pre = spec.preprocess
            rows.append(("images", f"{pre.height} x {pre.width} pixels, {pre.n_channels} channels of {pre.bits} bits"))
        rows.append(("classes", f"{len(spec.class_names):,}" if spec.class_names else "none"))
    counts = ", ".join(f"{count:,} {name}" for name, count in run.images.items())
    rows.append(("trained and validated on", counts or "not listed yet"))
    if run.seconds:
        rows.append(("time", duration(run.seconds) + (f" of {recipe.budget}" if recipe.budget else "")))
    peak = max(
        (row.get("peak_memory_mib") or 0 for stage in ("tokenizer", "prior") for row in run.rows(stage, "train")),
        default=0,
    )
    return [*rows, ("peak memory", f"{peak:,.0f} MiB")] if peak else rows


def quality_rows(
    run: RunSummary, usages: Mapping[str, CodeUsage] = _NONE, likelihood: Mapping[str, Any] = _NONE
) -> list[Sequence[str]]:
    """Figures with what is normal beside them: name, value, what it is compared with.

    Args:
        run: with evaluations in training.
        usages: of each codebook and split; none leaves the usage of codes out.
        likelihood: of ``kept_evaluation``; none leaves out what counts need.
    """
    rows: list[Sequence[str]] = []
    tokenizer, prior = run.rows("tokenizer", "held_out"), run.rows("prior", "held_out")
    if tokenizer:
        rows.append(("reconstruction, PSNR", f"{tokenizer[-1]['psnr']:.2f} dB", "higher is better"))
        rows.append(("reconstruction, SSIM", f"{tokenizer[-1]['ssim']:.3f}", "1 is the image itself"))
    if run.spec is None or not prior:
        return rows
    if run.spec.latents:
        normal = f"a Gaussian of each channel needs {prior[-1]['unigram_bits_per_code']:.3f}"
        return [*rows, ("prior, bits per latent value (density)", f"{prior[-1]['bits_per_code']:.3f}", normal)]
    return [*rows, *_code_rows(run.spec, usages, prior, likelihood)]


def _code_rows(
    spec: CodeSpec, usages: Mapping[str, CodeUsage], prior: Sequence[Mapping[str, Any]], likelihood: Mapping[str, Any]
) -> list[Sequence[str]]:
    last, best = prior[-1], min(row["nats_per_code"] for row in prior)
    bits = sum(slot.n_codes * math.log2(slot.codebook_size) for slot in spec.slots)
    rows: list[Sequence[str]] = []
    validation = [usage for name, usage in usages.items() if name.startswith("validation")]
    if validation:
        total, n_entries = summarize(validation), sum(usage.codebook_size for usage in validation)
        rows.append(("codes in use", f"{total.share_used:.1%}", f"of {n_entries:,}"))
        rows.append(("perplexity of the codes", f"{total.perplexity:,.1f}", f"at most {n_entries:,}"))
    smaller = ""
    if spec.knows_images:
        values = spec.preprocess.height * spec.preprocess.width * spec.preprocess.n_channels
        smaller = f"{values * spec.preprocess.bits / bits:,.1f} times smaller than pixels"
    rows.append(("bits of an image's codes", f"{bits:,.0f}", smaller))
    rows.append(
        ("prior, bits per code", f"{last['bits_per_code']:.3f}", f"uniform codes need {bits / spec.n_codes:.3f}")
    )
    counted = likelihood.get("metrics", {})
    needs = {"code frequencies": last["unigram_bits_per_code"]}
    if counted.get("count_neighbour_bits_per_code") is not None:
        needs["counts of left and upper neighbours"] = counted["count_neighbour_bits_per_code"]
    rows += [(f"{name} alone need", f"{value:.3f}", "") for name, value in needs.items()]
    below = last["below_unigram"]
    beside = f"{abs(below):.1%} {'below' if below >= 0 else 'above'} frequencies"
    rows.append(("prior, bits per image", f"{last['bits_per_image']:,.1f}", beside))
    if counted.get("bits_per_value") is not None:
        rows.append(("codes, bits per value of a pixel", f"{counted['bits_per_value']:.4f}", ""))
    rows.append(("prior, end over its best loss", f"{last['nats_per_code'] / best - 1:+.2%}", "above 0: it overfits"))
    return rows


def position_maps(likelihood: Mapping[str, Any]) -> list[HeatMap]:
    """A heat map for each slot: bits per code at each position of the grid."""
    slots = likelihood.get("bits_by_place", [])
    values = [value for each in slots for row in each["bits"] for value in row]
    caption = "Row by row, the first codes have the least context."
    return [
        HeatMap(_slot_name(each, slots), each["bits"], min(values), max(values), "bits per code", caption)
        for each in slots
    ]


def _slot_name(each: Mapping[str, Any], slots: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"grid {each['level'] + 1}"] if any(other["level"] for other in slots) else []
    parts += [f"depth {each['depth'] + 1}"] if any(other["depth"] for other in slots) else []
    return ", ".join(["Bits per code by position", *parts])


def class_bars(likelihood: Mapping[str, Any]) -> list[Bars]:
    """A bar for each class, the hardest first; of many classes the extremes alone."""
    rows = sorted(likelihood.get("bits_by_class", []), key=lambda row: -row["bits_per_code"])
    if len(rows) < 2:
        return []
    caption = "The line is the mean over all validation images."
    if len(rows) > _CLASSES_SHOWN:
        half = _CLASSES_SHOWN // 2
        caption = f"The {half} hardest and the {half} easiest of {len(rows):,} classes. {caption}"
        rows = rows[:half] + rows[-half:]
    bars = [
        Bar(f"{row['class']} ({row['images']:,})", row["bits_per_code"], f"{row['bits_per_code']:.3f}") for row in rows
    ]
    return [Bars("Bits per code by class (images)", bars, caption, likelihood["metrics"]["bits_per_code"])]


def sample_table(found: Mapping[str, Any]) -> Table:
    """Figures of ``evaluate --samples``, with intervals and held-out images beside them."""
    rows = []
    for name, each in found["figures"].items():
        own, real = each["samples"], each["real"]
        interval = f"{_text(name, own['low'])} to {_text(name, own['high'])}"
        beside = "" if real is None else _text(name, real["value"])
        label, says = LABELS.get(name, (name.replace("_", " "), ""))
        rows.append((f"{label}: {says}" if says else label, _text(name, own["value"]), interval, beside))
    return Table(rows, ("", "samples", "95 % interval", "real images"), "Real images were held out.")


def _text(name: str, value: float) -> str:
    return f"{value:.1%}" if name in SHARES else f"{value:.4g}"


def guidance_chart(found: Mapping[str, Any]) -> Chart:
    """The sweep of ``tune-guidance``: distance over the scale, a curve for each schedule."""
    schedules: dict[str, list[tuple[float, float]]] = {}
    for row in found["tried"]:
        detail = {"power-cosine": f" {row['schedule_power']:g}", "step": f" from {row['schedule_start']:g}"}
        name = row["schedule"] + detail.get(row["schedule"], "")
        schedules.setdefault(name, []).append((row["guidance_scale"], row["mean"]))
    series = []
    for name, points in schedules.items():
        scales, distances = zip(*sorted(points), strict=True)
        series.append(Series(name, scales, distances, dots=True))
    changed = "The best is the default now." if found["changed"] else "None beats the one in force beyond the noise."
    return Chart("Guidance", "guidance scale", "Frechet distance", series, f"Lower is better. {changed}")
