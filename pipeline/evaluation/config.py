"""What an evaluation scores, and by which networks. Imports no torch, for the command line's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foundation.config import check_types, require
from foundation.errors import ConfigError
from foundation.paths import PathOrName, PathText

ExtractorName = Literal["auto", "lite0", "small", "inception", "dinov2"]
Part = Literal["all", "tokenizer", "prior", "samples"]
Split = Literal["validation", "train"]
DEFAULT_SAMPLES, LEAST_SAMPLES = 2_000, 10


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Networks that score a tokenizer."""

    extractor: Literal["auto", "lite0", "small", "inception", "dinov2", "none"] = "auto"
    """features for distances; auto is lite0 where its package is installed, and small of tiny grey images"""
    weights: str | None = None
    """the extractor's weights: file, folder or hub name; default cached or downloaded"""
    lpips: str | None = None
    """VGG16's weights for LPIPS: a file, standard (cached or downloaded), or random; default no LPIPS"""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Samples to score. They are scored with --stage samples, or where one of these options is given."""

    samples: int | None = None
    """samples to draw; default 2,000, or all of --images"""
    images: PathOrName | None = None
    """score these images instead of new samples: folder, archives, table or .npz file"""
    reference: PathOrName | None = None
    """compare with these images instead of the run's own"""
    most_images: int = 10_000
    """real images to compare with at most, a fixed random choice"""
    seed: int = 0
    """of the samples, and of every choice of images"""
    npz: PathText | None = None
    """also write the samples to this .npz file, for other evaluators"""

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("samples", LEAST_SAMPLES), ("most_images", LEAST_SAMPLES)):
            value = getattr(self, name)
            require(value is None or value >= least, f"--{name.replace('_', '-')}", value, f"{least} or more")
        require(0 <= self.seed < 2**62, "--seed", self.seed, "a whole number from 0")
        what, fix = "writes new samples, and --images takes others", "leave one of them out"
        ConfigError.unless(self.npz is None or self.images is None, what, field="--npz", found=self.npz, fix=fix)

    @property
    def is_given(self) -> bool:
        """Whether samples are to be scored beside other parts."""
        return any(getattr(self, name) is not None for name in ("samples", "images", "reference", "npz"))

    @property
    def n_samples(self) -> int:
        """Samples to draw."""
        return DEFAULT_SAMPLES if self.samples is None else self.samples
