"""What a tokenizer is made of and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from foundation.config import require
from foundation.fit import FitConfig
from foundation.image_set import Augment
from foundation.learner import Precision
from foundation.optim import OptimConfig
from stage1_tokenizer.quantizers.config import FSQConfig, QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Architecture of the VQGAN family: residual blocks, GroupNorm, attention (Esser et al. 2021, arXiv:2012.09841)."""

    base_width: int = 64
    """channels at full resolution"""
    width_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """channels of each level as multiples of base_width; every level but the last halves the resolution"""
    n_res_blocks: int = 2
    """residual blocks per encoder level; the decoder has one more"""
    attention_levels: tuple[int, ...] = ()
    """levels whose residual blocks are followed by attention, 0 = full resolution"""
    middle_attention: bool = True
    """attention between the two residual blocks at the lowest resolution"""
    latent_channels: int = 128
    """channels between the convolutional networks and the 1 x 1 projections around the quantizer"""
    norm_groups: int = 32
    """groups of each GroupNorm; must divide every level's channels"""
    dropout: float = 0.0
    """dropout inside residual blocks, 0 to below 1"""
    quantizer: QuantizerConfig = field(default_factory=FSQConfig)
    """how latents become codes"""

    def __post_init__(self) -> None:
        require(len(self.width_multipliers) > 0, "width_multipliers", self.width_multipliers, "at least one level")
        require(self.norm_groups > 0, "norm_groups", self.norm_groups, "a positive whole number")
        for multiplier in self.width_multipliers:
            width = self.base_width * multiplier
            fits = multiplier > 0 and width > 0 and width % self.norm_groups == 0
            require(fits, "norm_groups", self.norm_groups, f"a divisor of every level's channels, here {width}",
                    "change base_width or norm_groups")  # fmt: skip
        levels = range(len(self.width_multipliers))
        known = all(level in levels for level in self.attention_levels)
        require(known, "attention_levels", self.attention_levels, f"levels from 0 to {levels[-1]}")
        require(self.n_res_blocks > 0, "n_res_blocks", self.n_res_blocks, "a positive whole number")
        require(self.latent_channels > 0, "latent_channels", self.latent_channels, "a positive whole number")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")

    @property
    def stride(self) -> int:
        """Pixels per code along each side."""
        return 2 ** (len(self.width_multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """How a tokenizer is trained."""

    fit: FitConfig = field(default_factory=FitConfig)
    """length and cadence"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """optimizer and learning rate"""
    augment: Augment = field(default_factory=Augment)
    """random changes to training images"""
    pixel_loss: Literal["l1", "l2"] = "l2"
    """distance between an image and its reconstruction, averaged over values in [-1, 1]"""
    average_decay: float = 0.999
    """decay of the exponential average of the weights, per step; 0 uses the last weights"""
    precision: Precision = "float32"
    """arithmetic of the convolutions; the quantizer and the losses always use float32"""

    def __post_init__(self) -> None:
        require(0 <= self.average_decay < 1, "average_decay", self.average_decay, "from 0 to below 1")
