"""Settings of a tokenizer and of its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from foundation.config import require, require_range
from foundation.config_fields import added_later
from foundation.images.config import Augment
from foundation.training.config import FitConfig, OptimConfig, Precision
from foundation.yaml_text import guess
from stage1_tokenizer.losses.config import AdversarialConfig, PerceptualConfig
from stage1_tokenizer.networks.config import DVAENetworks, Magvit2Networks, NetworksConfig, VQGANNetworks
from stage1_tokenizer.quantizers.config import FSQConfig, QuantizerConfig
from stage1_tokenizer.terms.config import TermConfig

_ONCE_FLAT = {"vqgan": VQGANNetworks, "magvit2": Magvit2Networks, "dvae": DVAENetworks}
"""families that had one flat form, in which their fields stood beside ``quantizer``"""
_ABSENT: dict[str, Any] = {"patch_size": 1, "attention_levels": [], "middle_attention": False, "dropout": 0.0}
"""values in that form of fields that a family does not have"""
_FLAT = {"base_width", "width_multipliers", "n_res_blocks", "norm_groups", *_ABSENT}


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Architecture: networks on both sides of a quantizer, with 1 x 1 projections between."""

    networks: NetworksConfig = field(default_factory=VQGANNetworks)
    """encoder and decoder"""
    latent_channels: int = 128
    """channels between the networks and the 1 x 1 projections around the quantizer"""
    quantizer: QuantizerConfig = field(default_factory=FSQConfig)
    """how latents become codes"""
    coarse_halvings: int = 0
    """above 0: a second, coarser grid of codes with sides halved this often (VQ-VAE-2)"""
    projection: Literal["plain", "double", "none"] = added_later("plain")  # type: ignore[assignment]
    """1 x 1 convolutions around the quantizer: plain goes from latent_channels and back; with double the encoder ends
    in twice as many channels; with none it ends in what the quantizer takes"""

    def __post_init__(self) -> None:
        require_range(self, "above 0", "latent_channels")
        require_range(self, "0 or more", "coarse_halvings")
        family, allowed = self.networks.type_name, self.networks.projections
        known = self.projection in allowed
        require(known, "projection", self.projection, f"{' or '.join(allowed)}, what networks: {family} has")
        if self.projection == "none":
            taken = self.quantizer.width
            expected = f"{taken}, the quantizer's width, where there is no projection"
            require(self.latent_channels == taken, "latent_channels", self.latent_channels, expected)
        if self.coarse_halvings:
            self._require_hierarchy_can_work()

    def _require_hierarchy_can_work(self) -> None:
        fix = "choose a discrete quantizer, or one grid"
        expected = "0 with a continuous quantizer"
        require(self.is_discrete, "coarse_halvings", self.coarse_halvings, expected, fix)
        groups = self.networks.norm_groups if isinstance(self.networks, VQGANNetworks) else 0
        usual = groups > 0 and self.projection == "plain"
        expected = "0 with other networks than vqgan or another projection than plain"
        require(usual, "coarse_halvings", self.coarse_halvings, expected)
        fits = self.latent_channels % groups == 0
        require(fits, "latent_channels", self.latent_channels, f"a multiple of norm_groups, {groups}")

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Stored settings in today's form, in which fields of the networks have moved into ``networks``.

        A mapping of networks without a ``type`` is ``vqgan``'s.
        """
        values = nested_networks(values)
        networks = values.get("networks")
        if isinstance(networks, Mapping):
            family = networks.get("type", "vqgan")
            known = {each.name for each in dataclasses.fields(_ONCE_FLAT[family])} if family in _ONCE_FLAT else _FLAT
            absent = {
                name for name in _ABSENT if name not in known and guess(networks.get(name)) in (_ABSENT[name], ())
            }
            kept = {name: value for name, value in networks.items() if name not in absent}
            values["networks"] = {"type": family, **kept}
        return values

    def canonical(self, values: dict[str, Any]) -> dict[str, Any]:
        """The form in which fingerprints know built-in networks: their fields beside the others, none left out."""
        networks = dict(values["networks"])
        family = networks.pop("type")
        if family not in _ONCE_FLAT:
            return values
        named = {} if family == "vqgan" else {"networks": family}
        rest = {name: value for name, value in values.items() if name != "networks"}
        return {**_ABSENT, **networks, **rest, **named}

    @property
    def stride(self) -> int:
        """Pixels per code along each side."""
        return self.networks.stride

    @property
    def encoder_channels(self) -> int:
        """Channels in which the encoder ends."""
        if self.projection == "none":
            return self.quantizer.latent_width
        return self.latent_channels * (2 if self.projection == "double" else 1)

    @property
    def is_discrete(self) -> bool:
        """Whether it makes codes; a Gaussian latent has none, and so no prior."""
        return self.quantizer.is_discrete

    @property
    def side_multiple(self) -> int:
        """What both sides of an image must be multiples of: the stride, at the coarsest grid."""
        return self.stride * 2**self.coarse_halvings

    @property
    def n_slots(self) -> int:
        """Kinds of codes that an image has: depths of each level."""
        return self.quantizer.depth * (2 if self.coarse_halvings else 1)


def nested_networks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer, all or some, with fields of its networks moved into ``networks``.

    Only the older form is changed: there, ``networks`` is absent or a name.
    """
    named, flat = values.get("networks"), {name: value for name, value in values.items() if name in _FLAT}
    if isinstance(named, (Mapping, NetworksConfig)) or not (named or flat):
        return dict(values)
    networks = {"type": named, **flat} if named else flat
    return {**{name: value for name, value in values.items() if name not in _FLAT}, "networks": networks}


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
    terms: tuple[TermConfig, ...] = added_later(())
    """further terms of the loss, each with a type and a weight: alignment, equivariance, lite0, or a term of an
    installed package"""
    average_decay: float = 0.999
    """decay of the exponential average of the weights, per step; 0 uses the last weights"""
    freeze_coding_after: float | None = added_later(None)
    """share of the steps after which encoder and codebook stay as they are, to the bit, and the decoder alone is
    trained on; training goes on from the averaged weights; null trains everything to the end"""
    precision: Precision = "auto"
    """arithmetic of the convolutions: float32, bf16, or auto, the faster one on the machine that begins the run; the
    quantizer and the losses always use float32"""
    micro_batch_size: int | None = added_later(None)
    """most images in one pass of one process through encoder, decoder, losses or discriminator; a step takes as many
    passes as its share of batch_size needs, with the gradient of the whole batch, in a sixth to a third more time;
    null puts the whole share through at once"""
    checkpoint_blocks: bool = added_later(False)  # type: ignore[assignment]
    """keep only the inputs of blocks in a forward pass and compute the rest again: less memory, a third more time"""
    compile: bool = added_later(False)  # type: ignore[assignment]
    """compile the levels of encoder and decoder with torch.compile; the first step then takes a minute or more"""
    evaluate_rfid: Literal["auto", "always", "never"] = added_later("auto")  # type: ignore[assignment]
    """rFID in each evaluation, where InceptionV3's weights are on this machine: auto measures it on a GPU, where it is
    quick"""

    def __post_init__(self) -> None:
        micro = self.micro_batch_size
        require(micro is None or micro > 0, "micro_batch_size", micro, "a positive whole number, or null")
        share = self.freeze_coding_after
        require(share is None or 0 < share < 1, "freeze_coding_after", share, "a share between 0 and 1, or null")
        require_range(self, "above 0", "pixel_weight")
        require_range(self, "from 0 to below 1", "average_decay")

    @property
    def coding_steps(self) -> int:
        """Optimizer steps that train encoder and codebook: the first ones."""
        share = self.freeze_coding_after
        return self.fit.steps if share is None else max(1, round(share * self.fit.steps))

    def at_largest(self) -> TokenizerTraining:
        """Settings whose every step takes as much memory as the largest step of these."""
        terms = tuple(each.costliest() for each in self.terms)
        return dataclasses.replace(self, terms=terms, freeze_coding_after=None)

    def without_files(self) -> TokenizerTraining:
        """The same with random weights in place of files of frozen networks: for measuring what a step costs."""
        perceptual = dataclasses.replace(self.perceptual, vgg_weights="random")
        terms = tuple(each.without_files() for each in self.terms)
        return dataclasses.replace(self, perceptual=perceptual, terms=terms)
