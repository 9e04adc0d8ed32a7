"""Scores of samples as text and as JSON, with notes on what they compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.bootstrap import CONFIDENCE, N_REPLICATES
from pipeline.evaluation.samples import MOST_COMPARED, SampleScores

_RELIABLE = 10_000
LABELS = {
    "kernel_distance": ("kernel distance", "lower is better; unbiased, 0 where nothing tells the sets apart"),
    "frechet_distance": ("Frechet distance", "lower is better; few samples raise it"),
    "inception_score": ("Inception score", "higher is better: certain of class, and varied"),
    "class_accuracy": ("class accuracy", "of a classifier on the same features; real images give the ceiling"),
    "precision": ("precision", "samples among the real images"),
    "recall": ("recall", "real images among the samples"),
    "density": ("density", "how deep samples lie among the real images"),
    "coverage": ("coverage", "real images that have a sample near them"),
    "nearer": ("nearer", "to a training image than new images are; higher: copies, or blur"),
    "close": ("close", "as close to a training image as 1 % of new images are; far more: copies"),
    "nearer_codes": ("nearer, codes", "the same by codes that differ"),
    "close_codes": ("close, codes", "the same by codes that differ"),
}
"""figure => its name, and what it says"""
SHARES = ("class_accuracy", "precision", "recall", "coverage", "nearer", "close", "nearer_codes", "close_codes")
"""figures that are shares"""
_PUBLISHED = {"kernel_distance": "KID", "frechet_distance": "FID"}


@dataclass(frozen=True)
class SampleReport:
    """Scores, with where the images came from.

    Attributes:
        scores: of the samples.
        samples: what they are, in words.
        training: what they are compared with, in words.
        held_out: what stands beside them, in words.
        seen: what the extractor sees of images of other channels than RGB and grey; None for these.
    """

    scores: SampleScores
    samples: str
    training: str
    held_out: str
    seen: str | None = None

    @property
    def names(self) -> list[str]:
        """Figures in the order in which they are shown: the Frechet distance first only where samples suffice."""
        there = [name for name in LABELS if name in self.scores.figures]
        if self.scores.n_samples < _RELIABLE:
            return there
        return ["frechet_distance", *(name for name in there if name != "frechet_distance")]

    @property
    def notes(self) -> list[str]:
        """Conditions for comparing these figures with others, a sentence each."""
        scores = self.scores
        kernel_n, real_n = (each["kernel_distance"].n_images for each in (scores.figures, scores.real))
        notes = [
            f"{scores.n_samples:,} samples: {self.samples}",
            f"compared with {scores.n_training:,} images: {self.training}",
            f"real: {scores.real['frechet_distance'].n_images:,} in place of samples: {self.held_out}",
            f"extractor {scores.extractor}, {scores.n_features:,} features, resize: {scores.resize}",
        ]
        if scores.caveat is not None:
            notes.append(f"NOT COMPARABLE with published figures: {scores.caveat}")
        if self.seen is not None:
            notes.append(f"NOT COMPARABLE with published figures: of {self.seen}")
        equal = f"kernel distance, precision, recall, density and coverage: of {kernel_n:,} samples and as many images"
        notes.append(f"{equal}; real: of {real_n:,} and as many")
        if scores.n_samples <= scores.n_features:
            notes.append(
                f"Frechet distance: too few samples for {scores.n_features:,} features; read the kernel distance"
            )
        elif scores.n_samples < _RELIABLE:
            notes.append(
                "Frechet distance: depends on the number of samples, strongly below 10,000; kernel distance first"
            )
        if scores.real["frechet_distance"].n_images < scores.n_samples:
            notes.append("fewer real images than samples: their Frechet distance and their overlap are of fewer images")
        notes.append(f"{CONFIDENCE:.0%} intervals: {N_REPLICATES} resamplings of the images; bias is not in them")
        if scores.classes_of is not None:
            notes.append(f"Inception score: {scores.classes_of}, one split")
        if scores.n_classified:
            notes.append(f"class accuracy: logistic regression on {scores.n_classified:,} images")
        return notes

    def table(self) -> str:
        """Format figures and notes as text."""
        scores = self.scores
        lines = [
            f"Scores of {scores.n_samples:,} samples, features of {scores.extractor}",
            f"{'':<17}{'samples':>9}  {f'{CONFIDENCE:.0%} interval':<21}{'real':>9}",
        ]
        for name in self.names:
            label, remark = LABELS[name]
            label = _PUBLISHED.get(name, label) if scores.extractor == "inception" else label
            figure, real = scores.figures[name], scores.real.get(name)
            interval = f"{_text(name, figure.low)} to {_text(name, figure.high)}"
            beside = "" if real is None else _text(name, real.value)
            lines.append(f"{label:<17}{_text(name, figure.value):>9}  {interval:<21}{beside:>9}  {remark}".rstrip())
        return "\n".join([*lines, "Notes", *(f"- {note}" for note in self.notes)])

    def as_json(self) -> dict[str, Any]:
        """All figures with their intervals; names of metrics end with the extractor."""
        scores = self.scores
        rows = {
            name: {
                "samples": scores.figures[name].as_json(),
                "real": scores.real[name].as_json() if name in scores.real else None,
            }
            for name in self.names
        }
        about = {"extractor": scores.extractor, "comparable": scores.caveat is None and self.seen is None}
        counts = {"samples": scores.n_samples, "training": scores.n_training, "held_out": scores.n_held_out}
        limits = {"most_compared": MOST_COMPARED, "classified": scores.n_classified}
        return {**about, "images": counts, **limits, "metrics": scores.metrics(), "figures": rows, "notes": self.notes}


def _text(name: str, value: float) -> str:
    return f"{value:.1%}" if name in SHARES else f"{value:.4g}"
