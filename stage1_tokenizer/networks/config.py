"""Settings of each family of encoder and decoder, which build both; a recipe chooses one by its ``type`` key."""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar

from foundation.config import Extensible, require, require_range
from foundation.config_fields import added_later

if TYPE_CHECKING:
    from torch import nn


class NetworksConfig(Extensible):
    """Base of the settings of all encoder-decoder pairs; a subclass is a frozen dataclass with a ``type_name``.

    Attributes:
        encoder: dotted name of the module that ``build_encoder`` calls with these settings; imported then.
        decoder: the same for ``build_decoder``.
        stride: pixels per code along each side.
        projections: values of ``projection`` that the family can have around the quantizer.
    """

    plugins = "tessera.networks"
    encoder: ClassVar[str]
    decoder: ClassVar[str]
    stride: int
    projections: ClassVar[tuple[str, ...]] = ("plain", "double", "none")

    def build_encoder(self, image_channels: int, channels_out: int) -> nn.Module:
        """(B, image_channels, Y, X) in [-1, 1] => (B, channels_out, Y / stride, X / stride); random weights."""
        encoder: nn.Module = resolve_name(self.encoder)(self, image_channels, channels_out)
        return encoder

    def build_decoder(self, channels_in: int, image_channels: int) -> nn.Module:
        """(B, channels_in, H, W) => (B, image_channels, H * stride, W * stride), not clamped; random weights.

        The module takes float32 whatever its weights are, and calls its last convolution ``conv_out``.
        """
        decoder: nn.Module = resolve_name(self.decoder)(self, channels_in, image_channels)
        return decoder


@dataclass(frozen=True, kw_only=True)
class ConvolutionalNetworks(NetworksConfig):
    """What all built-in families have: residual blocks at resolutions that halve from level to level."""

    base_width: int = 64
    """channels at full resolution"""
    width_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """channels of each level as multiples of base_width; every level but the last halves the resolution"""
    n_res_blocks: int = 2
    """residual blocks per encoder level; vqgan's decoder has one more"""
    norm_groups: int = 32
    """groups of each GroupNorm; must divide every level's channels (dvae has no norms)"""

    def __post_init__(self) -> None:
        require(len(self.width_multipliers) > 0, "width_multipliers", self.width_multipliers, "at least one level")
        require_range(self, "above 0", "norm_groups", "n_res_blocks")
        fix = "change base_width or norm_groups"
        for width in self.widths:
            expected = f"a divisor of every level's channels, here {width}"
            require(width > 0 == width % self.norm_groups, "norm_groups", self.norm_groups, expected, fix)

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from full resolution down."""
        return [self.base_width * multiplier for multiplier in self.width_multipliers]

    @property
    def stride(self) -> int:  # type: ignore[override]
        """Pixels per code along each side."""
        return 2 ** (len(self.width_multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class VQGANNetworks(ConvolutionalNetworks):
    """VQGAN's residual blocks, GroupNorm and attention (Esser et al. 2021, arXiv:2012.09841)."""

    type_name: ClassVar[str] = "vqgan"
    encoder: ClassVar[str] = "stage1_tokenizer.networks.vqgan.Encoder"
    decoder: ClassVar[str] = "stage1_tokenizer.networks.vqgan.Decoder"

    patch_size: int = 1
    """side of the pixel blocks folded into channels before the first convolution, and unfolded after the last;
    multiplies the stride"""
    attention_levels: tuple[int, ...] = ()
    """levels whose residual blocks are followed by attention, 0 = full resolution"""
    middle_attention: bool = True
    """attention between the two residual blocks at the lowest resolution"""
    dropout: float = 0.0
    """dropout inside residual blocks, 0 to below 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "above 0", "patch_size")
        require_range(self, "from 0 to below 1", "dropout")
        last = len(self.width_multipliers) - 1
        known = all(0 <= level <= last for level in self.attention_levels)
        require(known, "attention_levels", self.attention_levels, f"levels from 0 to {last}")

    @property
    def stride(self) -> int:  # type: ignore[override]
        """Pixels per code along each side."""
        return self.patch_size * super().stride


@dataclass(frozen=True, kw_only=True)
class Magvit2Networks(ConvolutionalNetworks):
    """Open-MAGVIT2's: no attention, and a decoder whose norms follow the codes (Luo et al. 2024, arXiv:2409.04410)."""

    type_name: ClassVar[str] = "magvit2"
    encoder: ClassVar[str] = "stage1_tokenizer.networks.magvit2.Magvit2Encoder"
    decoder: ClassVar[str] = "stage1_tokenizer.networks.magvit2.Magvit2Decoder"

    dropout: float = 0.0
    """dropout inside residual blocks, 0 to below 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "from 0 to below 1", "dropout")


@dataclass(frozen=True, kw_only=True)
class DVAENetworks(ConvolutionalNetworks):
    """DALL-E's: residual bottlenecks without norms or attention (Ramesh et al. 2021, arXiv:2102.12092)."""

    type_name: ClassVar[str] = "dvae"
    encoder: ClassVar[str] = "stage1_tokenizer.networks.dvae.DVAEEncoder"
    decoder: ClassVar[str] = "stage1_tokenizer.networks.dvae.DVAEDecoder"
    projections: ClassVar[tuple[str, ...]] = ("none",)


@dataclass(frozen=True, kw_only=True)
class ViTNetworks(NetworksConfig):
    """Transformers over patches of pixels (ViT-VQGAN: Yu et al. 2022, arXiv:2110.04627), for grids of any size."""

    type_name: ClassVar[str] = "vit"
    encoder: ClassVar[str] = "stage1_tokenizer.networks.vit.ViTEncoder"
    decoder: ClassVar[str] = "stage1_tokenizer.networks.vit.ViTDecoder"

    patch_size: int = 8
    """side of the pixel blocks that become tokens, one for each code: the stride"""
    width: int = 256
    """channels of a token, a multiple of 4"""
    encoder_layers: int = 4
    """blocks of the encoder; 0 makes it linear"""
    decoder_layers: int = 4
    """blocks of the decoder"""
    n_heads: int = 4
    """heads of attention; must divide width"""
    mlp_ratio: int = 4
    """channels inside a block's two layers, as a multiple of width"""
    overlap: bool = added_later(False)
    """let each token of the decoder draw a block of twice the side that fades out over its neighbours, so that no
    borders of blocks can be seen; needs an even patch_size"""

    def __post_init__(self) -> None:
        require_range(self, "above 0", "patch_size", "width", "decoder_layers", "n_heads", "mlp_ratio")
        even = not self.overlap or self.patch_size % 2 == 0
        require(even, "overlap", self.overlap, f"false for an odd patch_size, {self.patch_size}")
        require_range(self, "0 or more", "encoder_layers")
        require(self.width % 4 == 0, "width", self.width, "a multiple of 4: rows and columns take two waves each")
        require(self.width % self.n_heads == 0, "n_heads", self.n_heads, f"a divisor of width, {self.width}")

    @property
    def stride(self) -> int:  # type: ignore[override]
        """Pixels per code along each side."""
        return self.patch_size
