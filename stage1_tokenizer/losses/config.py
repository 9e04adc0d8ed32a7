"""Typed configuration of the losses; a weight of 0 leaves a loss out altogether."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from foundation.config import require, require_range
from foundation.paths import PathMark
from foundation.training.config import OptimConfig, Precision


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """LPIPS between images and reconstructions (Zhang et al. 2018, arXiv:1801.03924)."""

    weight: float = 0.0
    """factor of LPIPS in the loss, usually 1; 0 leaves it out"""
    vgg_weights: Annotated[str, PathMark(words=("random",))] = ""
    """file with VGG16's ImageNet weights (.pth or .safetensors); empty looks in TESSERA_VGG16, then in torch's cache,
    then downloads; "random" takes seeded random weights, for tests only"""
    precision: Precision = "auto"
    """arithmetic of VGG16's convolutions in training: float32, bf16, or auto, the faster one on the machine that begins
    the run; distances are float32 always, and so is the metric"""

    def __post_init__(self) -> None:
        require_range(self, "0 or more", "weight")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """A convolutional network that judges overlapping patches (PatchGAN, Isola et al. 2017, arXiv:1611.07004)."""

    width: int = 64
    """channels of the first layer; doubled by each further one, up to 8 times"""
    n_layers: int = 3
    """layers that halve the resolution; 3 sees patches of 70 x 70 pixels and needs images of at least 24 pixels"""
    norm: Literal["group", "none"] = "group"
    """normalisation between layers"""
    spectral_norm: bool = False
    """divide each kernel by its largest singular value (Miyato et al. 2018, arXiv:1802.05957)"""
    blur: bool = False
    """halve the resolution by 3 x 3 convolution and blurred subsampling instead of a strided 4 x 4 convolution"""

    def __post_init__(self) -> None:
        require_range(self, "above 0", "width")
        require(1 <= self.n_layers <= 8, "n_layers", self.n_layers, "from 1 to 8")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptim(OptimConfig):
    """AdamW and learning rate of the discriminator; steps count from the adversary's start."""

    learning_rate: float = 1e-4
    """peak learning rate"""
    warmup_steps: int = 0
    """optimizer steps of linear warm-up"""
    beta1: float = 0.5
    """decay of the gradient's average, 0 to 1"""
    beta2: float = 0.9
    """decay of the squared gradient's average, 0 to 1"""


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """Training against a discriminator (Esser et al. 2021, arXiv:2012.09841, section 3.1)."""

    weight: float = 0.0
    """factor of the adversarial loss, usually 0.1 to 0.8; 0 leaves the adversary out"""
    loss: Literal["hinge", "non_saturating"] = "hinge"
    """what the discriminator minimises, and its counterpart for the decoder"""
    start_step: int = 20_000
    """optimizer step at which the adversary starts; before it, nothing of it is computed"""
    ramp_steps: int = 1000
    """optimizer steps in which the adversarial loss grows to its weight; the discriminator learns from the start"""
    adaptive: bool = True
    """also scale the loss so that its gradient at the decoder's last layer is as large as the reconstruction's"""
    lecam_weight: float = 0.0
    """factor of LeCAM regularisation in the discriminator's loss, usually 0.001; 0 leaves it out"""
    lecam_decay: float = 0.999
    """share of the running mean logits kept at each step, 0 to below 1"""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """the discriminator's architecture"""
    optim: DiscriminatorOptim = field(default_factory=DiscriminatorOptim)
    """the discriminator's optimizer and learning rate"""

    def __post_init__(self) -> None:
        require_range(self, "0 or more", "weight", "start_step", "ramp_steps", "lecam_weight")
        require_range(self, "from 0 to below 1", "lecam_decay")
        matrices = self.optim.matrices
        require(matrices == "adamw", "optim.matrices", matrices, "adamw: a discriminator is trained by nothing else")
