"""What the report says about the likelihood of codes: by place in the grid, by class, beside models that count."""

from __future__ import annotations

from typing import Any

from pipeline.report_plots import figure_panels, plot

_CLASSES_SHOWN = 40


def likelihood_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows for the table of figures, of a ``PriorEvaluation.as_json``."""
    numbers = found["metrics"]
    return [
        ("&nbsp;&nbsp;frequencies of training codes need", f"{numbers['count_unigram_bits_per_code']:.3f}"),
        ("&nbsp;&nbsp;counts of left and upper neighbours need", f"{numbers['count_neighbour_bits_per_code']:.3f}"),
        ("Codes' bits per pixel dimension, held-out", f"{numbers['bits_per_value']:.4f}"),
    ]


def place_plot(found: dict[str, Any]) -> str:
    """A heat map for each slot: how many bits a code costs at each place of the grid."""
    places = found["bits_by_place"]
    lowest = min(min(map(min, each["bits"])) for each in places)
    highest = max(max(map(max, each["bits"])) for each in places)
    figures = ""
    for start in range(0, len(places), 3):
        shown = places[start : start + 3]
        figure, axes = figure_panels(len(shown))
        for axis, each in zip(axes, shown, strict=True):
            image = axis.imshow(each["bits"], vmin=lowest, vmax=highest, cmap="viridis")
            axis.set(title=_slot_name(each, places), xlabel="column of the grid", ylabel="row of the grid")
            for side in (axis.xaxis, axis.yaxis):
                side.get_major_locator().set_params(integer=True)
            figure.colorbar(image, ax=axis, label="bits per code")
        figures += plot(figure, "Held-out bits per code at each place. Codes come row by row: the first see the least.")
    return figures


def class_plot(found: dict[str, Any]) -> str:
    """A bar for each class, the hardest first; of many classes the extremes. Empty without classes."""
    rows = sorted(found["bits_by_class"], key=lambda row: -row["bits_per_code"])
    if len(rows) < 2:
        return ""
    caption = "Held-out bits per code of each class, the hardest first."
    if len(rows) > _CLASSES_SHOWN:
        half = _CLASSES_SHOWN // 2
        caption = f"Held-out bits per code: the {half} hardest and the {half} easiest of {len(rows):,} classes."
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


def _slot_name(each: dict[str, Any], places: list[dict[str, Any]]) -> str:
    parts = [f"grid {each['level'] + 1}"] if any(other["level"] for other in places) else []
    parts += [f"depth {each['depth'] + 1}"] if any(other["depth"] for other in places) else []
    return "Prior: bits by place" + (f", {', '.join(parts)}" if parts else "")
