"""Options of generation: sampling settings, seeds, output, speed. Imports no torch, for the command line's help."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from stage2_prior.decoding.sampling import SamplingConfig

OutputType = Literal["pil", "np", "numpy", "pt", "latent"]
OUTPUT_TYPES: tuple[str, ...] = typing.get_args(OutputType)
SETTINGS: dict[str, Any] = typing.get_type_hints(SamplingConfig)
"""sampling setting => its type"""

if TYPE_CHECKING:
    import torch

    class SamplingOptions(TypedDict, total=False):
        """At run time: each field of ``SamplingConfig``. One that is missing or None takes the generator's default."""

else:
    SamplingOptions = TypedDict("SamplingOptions", {name: hint | None for name, hint in SETTINGS.items()}, total=False)


class DrawOptions(SamplingOptions, total=False):
    """Options of every way of making images, beside the sampling settings.

    seed
        a whole number, from which and from i the random stream of image i is derived; or a list, one for each image;
        None takes a random number. ``GeneratorOutput.seeds`` gives the seed of each image alone.
    generator
        instead of a seed, a torch.Generator from which the seeds are sampled, or a list of one for each image.
    best_of
        sample this many candidates of each image and keep the likeliest, 1 or more; default 1.
    batch_size
        most images in memory at once; None takes what fits. An image does not depend on it.
    output_type
        pil, np (or numpy), pt or latent, see ``GeneratorOutput.images``; default pil.
    """

    seed: int | Sequence[int] | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    best_of: int
    batch_size: int | None
    output_type: OutputType


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Options that change numbers by rounding only."""

    precision: Literal["float32", "bf16"] = "float32"
    """of the prior's weights"""
    compile: bool = False
    """compile the step that samples a code: half a minute, for a GPU"""
