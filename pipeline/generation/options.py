"""What a caller may say about how images are drawn; quick to load, since the command line's help needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

Schedule = Literal["constant", "linear", "power-cosine", "step"]
OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class SamplingOptions(TypedDict, total=False):
    """Fields of ``SamplingConfig``; one that is left out or None takes the generator's default."""

    guidance_scale: float | None
    schedule: Schedule | None
    schedule_power: float | None
    schedule_start: float | None
    guidance_interval: tuple[float, float] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None


class DrawOptions(SamplingOptions, total=False):
    """What every way of making images takes, beside the sampling settings.

    seed
        image i is drawn with seed + i, or with its own number from a list; None draws a random one.
    best_of
        draw this many candidates of each image and keep the likeliest, 1 or more; default 1.
    batch_size
        most images in memory at once; None takes what fits. An image does not depend on it.
    output_type
        pil, np, pt or latent, see ``GeneratorOutput.images``; default pil.
    """

    seed: int | Sequence[int] | None
    best_of: int
    batch_size: int | None
    output_type: OutputType


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What changes numbers by rounding only."""

    precision: Literal["float32", "bf16"] = "float32"
    """of the prior's weights; bf16 is faster where the processor has instructions for it"""
    compile: bool = False
    """compile the step that draws a code: half a minute to begin, then faster on a GPU (slower on a CPU)"""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings on the command line; default the run's."""

    guidance_scale: float | None = None
    """how closely to follow the class; 1 is plain sampling"""
    schedule: Schedule | None = None
    """how guidance grows over the codes of an image"""
    schedule_power: float | None = None
    """schedule power-cosine only: larger begins later"""
    schedule_start: float | None = None
    """schedule step only: share of the codes before guidance begins"""
    guidance_interval: tuple[float, float] | None = None
    """shares of the codes between which guidance acts, e.g. '[0.1,0.9]'"""
    temperature: float | None = None
    """below 1 is safer, above 1 more varied"""
    top_k: int | None = None
    """draw from the k likeliest codes only"""
    top_p: float | None = None
    """draw from the likeliest codes of this total probability"""

    def given(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
