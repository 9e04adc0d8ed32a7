"""Plots and pictures of a report as inline HTML figures."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from foundation.codes.usage import CodeUsage

_CLASSES_SHOWN = 40
Rows = Sequence[dict[str, Any]]


def tokenizer_plot(train: Rows, validation: Rows) -> str:
    """Losses, reconstruction and code usage over the steps of stage 1."""
    if not train or not validation:
        return ""
    figure, (left, middle, right) = figure_panels(3)
    left.semilogy(*_series(train, "loss_pixel"), label="pixel", linewidth=1)
    if "loss_perceptual" in train[-1]:
        left.semilogy(*_series(train, "loss_perceptual"), label="perceptual", linewidth=1)
    left.set(title="Tokenizer: training losses", xlabel="step")
    left.legend()
    middle.plot(*_series(validation, "psnr"), marker=".")
    middle.set(title="Tokenizer: validation PSNR", xlabel="step", ylabel="dB")
    right.set(title="Tokenizer: validation code usage", xlabel="step")
    if "code_usage" in validation[-1]:
        right.plot(*_series(validation, "code_usage"), marker=".", color="tab:orange")
        for name in sorted(name for name in validation[-1] if re.fullmatch(r"code_usage_\d+", name)):
            right.plot(*_series(validation, name), linestyle=":", color="tab:orange")
        right.set(ylabel="share in use (orange)", ylim=(0, 1.02))
        perplexity = right.twinx()
        perplexity.plot(*_series(validation, "code_perplexity"), marker=".", color="tab:green")
        perplexity.set(ylabel="perplexity (green)", ylim=(0, None))
    else:
        right.text(0.5, 0.5, "a continuous latent has no codebook", ha="center", transform=right.transAxes)
    several = ", dotted for each codebook" if "code_usage_0" in validation[-1] else ""
    return plot(figure, f"Training loss; reconstruction; share of codes in use{several}, and perplexity.")


def adversary_plot(train: Rows) -> str:
    """Logits, loss and weight of the discriminator; empty without one."""
    rows = [row for row in train if "discriminator_loss" in row]
    if not rows:
        return ""
    figure, (left, right) = figure_panels(2)
    left.plot(*_series(rows, "logits_real"), label="images", linewidth=1)
    left.plot(*_series(rows, "logits_fake"), label="reconstructions", linewidth=1)
    left.set(title="Discriminator: mean logits", xlabel="step")
    left.legend()
    for name, label in (("discriminator_loss", "discriminator loss"), ("adaptive_weight", "adaptive weight")):
        if name in rows[-1]:
            right.plot(*_series(rows, name), label=label, linewidth=1)
    right.set(title="Discriminator: loss and weight", xlabel="step", yscale="log")
    right.legend()
    return plot(figure, "Logits that stay apart: the discriminator has won, and its gradient is useless.")


def prior_plot(train: Rows, validation: Rows) -> str:
    """Bits per code over the steps of stage 2."""
    if not train or not validation:
        return ""
    figure, (axis,) = figure_panels(1)
    steps, nats = _series(train, "loss")
    axis.plot(steps, np.asarray(nats, float) / math.log(2), linewidth=1, label="training (with dropout)")
    axis.plot(*_series(validation, "bits_per_code"), marker=".", label="validation")
    axis.axhline(validation[-1]["unigram_bits_per_code"], linestyle="--", color="gray", label="code frequencies alone")
    axis.set(title="Prior: bits per code", xlabel="step")
    axis.legend()
    return plot(figure, "Lower is better; a rising validation curve means overfitting.")


def usage_plot(usages: dict[str, CodeUsage]) -> str:
    """Frequencies of the codes, most frequent first, one panel for each name."""
    figures = ""
    names = list(usages)
    for start in range(0, len(names), 2):
        figure, axes = figure_panels(2)
        for axis, name in zip(axes, [*names[start : start + 2], None], strict=False):
            if name is None:
                axis.set_axis_off()
                continue
            counts = usages[name]
            ordered = np.sort(counts.counts_U)[::-1] / max(1, counts.n_codes)
            axis.fill_between(np.arange(len(ordered)), ordered, step="mid")
            axis.set_xlim(right=counts.codebook_size)
            title = f"{name}: {counts.share_used:.1%} used, perplexity {counts.perplexity:,.0f}"
            axis.set(title=title, xlabel="codes, most frequent first", ylabel="share of all codes", yscale="log")
        figures += plot(figure, "; ".join(names[start : start + 2]))
    return figures + "<p class='lead'>A flat top with a steep end means good codebook usage.</p>"


def likelihood_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table of figures, from ``PriorEvaluation.as_json``."""
    numbers = found["metrics"]
    counted = numbers.get("count_neighbour_bits_per_code")  # absent of latents
    name = "&nbsp;&nbsp;counts of left and upper neighbours need"
    neighbours = [] if counted is None else [(name, f"{counted:.3f}")]
    per_value = numbers.get("bits_per_value")  # absent where the images of the codes are not known
    return [
        ("&nbsp;&nbsp;frequencies of training codes need", f"{numbers['count_unigram_bits_per_code']:.3f}"),
        *neighbours,
        *([] if per_value is None else [("Codes' bits per pixel dimension, validation", f"{per_value:.4f}")]),
    ]


def position_plot(found: dict[str, Any]) -> str:
    """A heat map for each slot: bits per code at each position of the grid."""
    slots = found["bits_by_place"]
    lowest = min(min(map(min, each["bits"])) for each in slots)
    highest = max(max(map(max, each["bits"])) for each in slots)
    figures = ""
    for start in range(0, len(slots), 3):
        shown = slots[start : start + 3]
        figure, axes = figure_panels(len(shown))
        for axis, each in zip(axes, shown, strict=True):
            image = axis.imshow(each["bits"], vmin=lowest, vmax=highest, cmap="viridis")
            axis.set(title=_slot_name(each, slots), xlabel="column of the grid", ylabel="row of the grid")
            for side in (axis.xaxis, axis.yaxis):
                side.get_major_locator().set_params(integer=True)
            figure.colorbar(image, ax=axis, label="bits per code")
        figures += plot(
            figure, "Validation bits per code at each position, in row order: the first codes have the least context."
        )
    return figures


def class_plot(found: dict[str, Any]) -> str:
    """A bar for each class, the hardest first; only the extremes of many classes. Empty without classes."""
    rows = sorted(found["bits_by_class"], key=lambda row: -row["bits_per_code"])
    if len(rows) < 2:
        return ""
    caption = "Validation bits per code of each class, the hardest first."
    if len(rows) > _CLASSES_SHOWN:
        half = _CLASSES_SHOWN // 2
        caption = f"Validation bits per code: the {half} hardest and the {half} easiest of {len(rows):,} classes."
        rows = rows[:half] + rows[-half:]
    figure, (axis,) = figure_panels(1)
    figure.set_size_inches(6.4, 1.2 + 0.2 * len(rows))
    names = [f"{row['class'][:32]} ({row['images']:,})".replace("$", r"\$") for row in rows]
    bars = axis.barh(range(len(rows)), [row["bits_per_code"] for row in rows])
    axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axis.axvline(found["metrics"]["bits_per_code"], linestyle="--", color="gray", label="all images")
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    axis.set(title="Prior: bits per code by class (images)", xlabel="bits per code")
    axis.margins(x=0.15)
    axis.legend(loc="lower left")
    return plot(figure, caption)


def _slot_name(each: dict[str, Any], slots: list[dict[str, Any]]) -> str:
    parts = [f"grid {each['level'] + 1}"] if any(other["level"] for other in slots) else []
    parts += [f"depth {each['depth'] + 1}"] if any(other["depth"] for other in slots) else []
    return "Prior: bits by position" + (f", {', '.join(parts)}" if parts else "")


def picture(image: Image.Image, caption: str) -> str:
    """A picture with its caption."""
    return f"<figure>{inline_image(image, caption)}<figcaption>{caption}</figcaption></figure>"


def inline_image(image: Image.Image, alt: str) -> str:
    """A picture without a caption."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return _inline(buffer.getvalue(), alt, "pixels")


def _series(rows: Rows, name: str) -> tuple[list[int], list[Any]]:
    return [row["step"] for row in rows], [row.get(name, math.nan) for row in rows]


def figure_panels(n: int) -> tuple[Any, Any]:
    """A figure, and its n axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * n if n > 1 else 6.4, 3.2), layout="constrained")
    return figure, figure.subplots(1, n, squeeze=False)[0]


def plot(figure: Any, caption: str) -> str:
    """A finished figure as HTML, with its caption."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"<figure>{_inline(buffer.getvalue(), caption, 'plot')}<figcaption>{caption}</figcaption></figure>"


def _inline(png: bytes, alt: str, kind: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img class='{kind}' alt='{html.escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"
