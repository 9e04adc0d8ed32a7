"""What a tokenizer is made of and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from foundation.config import require
from foundation.config_fields import later
from foundation.images.image_set import Augment
from foundation.training.fit import FitConfig
from foundation.training.learner import Precision
from foundation.training.optim import OptimConfig
from stage1_tokenizer.losses.config import AdversarialConfig, PerceptualConfig
from stage1_tokenizer.quantizers.config import FSQConfig, GumbelConfig, KLConfig, QuantizerConfig, ResidualConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Architecture: by default VQGAN's residual blocks, GroupNorm, attention (Esser et al. 2021, arXiv:2012.09841)."""

    patch_size: int = 1
    """side of the pixel blocks folded into channels before the first convolution, and unfolded after the last;
    multiplies the stride"""
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
    coarse_halvings: int = 0
    """above 0: a second, coarser grid of codes with sides halved this often (VQ-VAE-2)"""
    networks: Literal["vqgan", "magvit2", "dvae"] = later("vqgan")
    """family of encoder and decoder: vqgan; magvit2 has no attention and a decoder whose norms follow the codes; dvae
    has neither norms nor attention"""
    projection: Literal["plain", "double", "none"] = later("plain")
    """1 x 1 convolutions around the quantizer: plain goes from latent_channels and back; with double the encoder ends
    in twice as many channels; with none it ends in what the quantizer takes"""

    def __post_init__(self) -> None:
        require(self.patch_size > 0, "patch_size", self.patch_size, "a positive whole number of pixels")
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
        require(self.coarse_halvings >= 0, "coarse_halvings", self.coarse_halvings, "0 or more")
        fits = self.coarse_halvings == 0 or self.is_discrete
        require(fits, "coarse_halvings", self.coarse_halvings, "0 with a continuous quantizer",
                "choose a discrete quantizer, or one grid")  # fmt: skip
        grouped = self.coarse_halvings == 0 or self.latent_channels % self.norm_groups == 0
        require(grouped, "latent_channels", self.latent_channels, f"a multiple of norm_groups, {self.norm_groups}")
        self._require_variant_can_work()

    def _require_variant_can_work(self) -> None:
        if self.networks != "vqgan":
            reason = f"what networks: {self.networks} has"
            require(not self.attention_levels, "attention_levels", self.attention_levels, f"none, {reason}")
            require(not self.middle_attention, "middle_attention", self.middle_attention, f"false, {reason}")
            require(self.patch_size == 1, "patch_size", self.patch_size, f"1, {reason}")
        if self.networks == "dvae":
            require(self.projection == "none", "projection", self.projection, "none, what networks: dvae has")
            require(self.dropout == 0, "dropout", self.dropout, "0, what networks: dvae has")
        usual = self.networks == "vqgan" and self.projection == "plain"
        require(usual or self.coarse_halvings == 0, "coarse_halvings", self.coarse_halvings,
                "0 with other networks than vqgan or another projection than plain")  # fmt: skip
        if self.projection == "none":
            taken = quantizer_width(self.quantizer)
            require(self.latent_channels == taken, "latent_channels", self.latent_channels,
                    f"{taken}, the quantizer's width, where there is no projection")  # fmt: skip

    @property
    def stride(self) -> int:
        """Pixels per code along each side."""
        return self.patch_size * 2 ** (len(self.width_multipliers) - 1)

    @property
    def encoder_channels(self) -> int:
        """Channels in which the encoder ends."""
        if self.projection != "none":
            return self.latent_channels * (2 if self.projection == "double" else 1)
        if isinstance(self.quantizer, KLConfig):
            return 2 * self.quantizer.width
        logits = isinstance(self.quantizer, GumbelConfig) and not self.quantizer.logit_layer
        return self.quantizer.codebook_size if logits else self.latent_channels  # type: ignore[union-attr]

    @property
    def is_discrete(self) -> bool:
        """Whether it makes codes; a Gaussian latent has none, and so no prior."""
        return not isinstance(self.quantizer, KLConfig)

    @property
    def side_multiple(self) -> int:
        """What both sides of an image must be multiples of: the stride, at the coarsest grid."""
        return self.stride * 2**self.coarse_halvings

    @property
    def n_slots(self) -> int:
        """Kinds of codes that an image has: depths of each level."""
        depth = self.quantizer.depth if isinstance(self.quantizer, ResidualConfig) else 1
        return depth * (2 if self.coarse_halvings else 1)


def quantizer_width(config: QuantizerConfig) -> int:
    """Channels of what a quantizer gives the decoder."""
    return config.codebook.width if isinstance(config, ResidualConfig) else config.width


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
    pixel_weight: float = 1.0
    """factor of the pixel loss"""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """LPIPS beside the pixel loss; off unless its weight is above 0"""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """a discriminator that reconstructions must deceive; off unless its weight is above 0"""
    average_decay: float = 0.999
    """decay of the exponential average of the weights, per step; 0 uses the last weights"""
    precision: Precision = "float32"
    """arithmetic of the convolutions; the quantizer and the losses always use float32"""

    def __post_init__(self) -> None:
        require(self.pixel_weight > 0, "pixel_weight", self.pixel_weight, "a positive number")
        require(0 <= self.average_decay < 1, "average_decay", self.average_decay, "from 0 to below 1")
