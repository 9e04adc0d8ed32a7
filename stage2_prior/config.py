"""Configuration of a prior and of its training; imports no torch.

Of the named sizes, ``tiny`` and ``small`` are ours, for a CPU. The others have the layers, heads and widths of LlamaGen
(Sun et al. 2024, arXiv:2406.06525, Table 1, and its released code); their feed-forward layers are narrower by up to
5 %, since ``d_ff`` is rounded up to a multiple of 32 here and of 256 there: gpt-l has 338 million parameters, not 343.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from foundation.config import from_dict, require, require_range
from foundation.config_fields import added_later
from foundation.errors import ConfigError, nearest
from foundation.training.config import Falling, FitConfig, OptimConfig, Precision


class TransformerShape(NamedTuple):
    """Blocks, attention heads and width."""

    n_layers: int
    n_heads: int
    d_model: int


class NamedSize(NamedTuple):
    """A shape, and about how many parameters it has in all with 16,384 codes and 1,000 classes."""

    shape: TransformerShape
    parameters: float


SIZES = {
    "tiny": NamedSize(TransformerShape(4, 4, 128), 5.13e6),
    "small": NamedSize(TransformerShape(6, 4, 256), 13.5e6),
    "gpt-b": NamedSize(TransformerShape(12, 12, 768), 111e6),
    "gpt-l": NamedSize(TransformerShape(24, 16, 1024), 338e6),
    "gpt-xl": NamedSize(TransformerShape(36, 20, 1280), 753e6),
    "gpt-xxl": NamedSize(TransformerShape(48, 24, 1536), 1.41e9),
    "gpt-3b": NamedSize(TransformerShape(24, 32, 3200), 3.06e9),
}
"""name => size; n_layers, n_heads, d_model, parameters"""
_DEFAULT_SIZE = "small"


@dataclass(frozen=True, kw_only=True)
class RandomOrder:
    """Annealing of random order: all training images, then a linearly falling share, then none.

    Source: Yu et al. 2024, arXiv:2411.00776, section 3.2.
    """

    until_step: int
    """every image is in random order before this optimizer step"""
    zero_step: int
    """no image is from this optimizer step on"""

    def __post_init__(self) -> None:
        require(self.until_step >= 0, "until_step", self.until_step, "0 or a number of steps")
        ordered, expected = self.zero_step >= self.until_step, f"until_step, {self.until_step}, or later"
        require(ordered, "zero_step", self.zero_step, expected)

    def share(self, step: int) -> float:
        """Share of images in random order at an optimizer step (from 0)."""
        if step < self.until_step:
            return 1.0
        if step >= self.zero_step:
            return 0.0
        return (self.zero_step - step) / (self.zero_step - self.until_step)


@dataclass(frozen=True, kw_only=True)
class Regularizer:
    """reAR: random codes in the context, and hidden states aligned with the tokenizer's code vectors.

    Source: He et al. 2025, arXiv:2510.04450.
    """

    noise: float = 1.0
    """largest share of an image's context that random codes replace at the first step, from 0 to 1; an image's own
    share is anything between 0 and it"""
    noise_until: float = 0.75
    """share of all steps over which noise falls to 0, above 0 to 1"""
    current_weight: float = 1.0
    """weight of the cosine between the state after the first block and the vector of the code it is given, where that
    was not replaced; 0 leaves it out"""
    target_weight: float = 1.0
    """weight of the cosine between the state at three quarters of the depth and the vector of the code it is to
    predict; 0 leaves it out"""

    def __post_init__(self) -> None:
        require(0 <= self.noise <= 1, "noise", self.noise, "from 0 to 1")
        require(0 < self.noise_until <= 1, "noise_until", self.noise_until, "a share above 0, up to 1")
        require_range(self, "0 or more", "current_weight", "target_weight")

    @property
    def aligns(self) -> bool:
        """Whether code vectors are needed."""
        return self.current_weight > 0 or self.target_weight > 0

    @property
    def strength(self) -> Falling:
        """Of the noise, over the steps."""
        return Falling(self.noise, self.noise_until)


_TRANSFORMER = "stage2_prior.transformer:TransformerPrior"
LATENTS_KIND = "stage2_prior.mixture:MixturePrior"
"""dotted name of the class of priors of a continuous tokenizer's latents"""
KINDS = {"llama": _TRANSFORMER, "gpt": _TRANSFORMER, "pixelcnn": "stage2_prior.pixelcnn:PixelCNN"}
"""block => dotted name of the class of priors that has it"""
PLUGINS = "tessera.priors"
"""group of the entry points with which other packages add to ``KINDS``"""
PREDICTED = ("raster", "random-to-raster", "any", "masked")
"""orders in which a prior can predict codes"""


def kinds() -> dict[str, str]:
    """``KINDS``, and the blocks of installed packages.

    Raises:
        ConfigError: a package's block has the name of one of ours.
    """
    from importlib import metadata

    added = {entry.name: entry.value for entry in metadata.entry_points(group=PLUGINS)}
    for name in sorted(added.keys() & KINDS.keys()):
        found, expected = f"{name}, the name of {KINDS[name]}", "a name of its own: rename it, or uninstall its package"
        require(False, f"{PLUGINS}: {added[name]}", found, expected)
    return {**KINDS, **added}


@functools.cache
def _require_other_names() -> None:
    """See ``kinds``; asked once in a process, because it looks at all installed packages."""
    kinds()


class Dropouts(NamedTuple):
    """Dropout rates in training, 0 to below 1."""

    token: float
    residual: float
    attention: float


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Size of the transformer; vocabulary, grid and classes follow from the codes."""

    size: str | None = None
    """one dial for d_model, n_layers and n_heads: tiny, small, gpt-b, gpt-l, gpt-xl, gpt-xxl or gpt-3b"""
    d_model: int | None = None
    """width; null takes the value of size, or 256 without one"""
    n_layers: int | None = None
    """blocks; null takes the value of size, or 6 without one"""
    n_heads: int | None = None
    """attention heads; null takes the value of size, or 4; d_model / n_heads must be a multiple of 4, for rotations by
    row and column"""
    d_ff: int | None = None
    """width of the feed-forward layer; null takes 8/3 of d_model, rounded up to a multiple of 32, or 4 times d_model
    where block is gpt"""
    positions: Literal["rope", "learned"] = "rope"
    """how a code's position is known: rope rotates queries and keys by row and column; learned adds an embedding of the
    position to the input"""
    rope_base: float = 10_000.0
    """base of the rotary frequencies; small grids train better with a small base, such as 100"""
    target_aware: bool = False
    """add an embedding of the position that is predicted to each input, so that codes can be predicted in any order;
    the orders random-to-raster and any always do"""
    qk_norm: bool = True
    """normalise queries and keys per head before rotating them"""
    dropout: float = 0.1
    """dropout in training, 0 to below 1; the one value of the three below where they are null"""
    token_dropout: float | None = None
    """dropout of the embedded codes and class; null takes dropout"""
    residual_dropout: float | None = None
    """dropout of what each attention and feed-forward layer adds; null takes dropout"""
    attention_dropout: float | None = None
    """dropout of attention weights; null takes dropout"""
    class_conditional: bool = True
    """condition on labels where the codes have them; false trains an unconditional prior"""
    block: str = added_later("llama")
    """layers of a block: llama has RMSNorm, SwiGLU and no biases; gpt has LayerNorm, GELU and biases; pixelcnn has
    gated masked convolutions instead of attention; or the name that an installed package gives to its own"""
    reach: int = added_later(2)  # type: ignore[assignment]
    """block pixelcnn, or one of another package: rows above and columns to each side that a layer sees"""
    class_rotation: Literal["identity", "zero"] = added_later("identity")
    """positions rope only: identity leaves the query and key of the class as they are; zero makes them zero, so that
    every code scores the class with 0, as LlamaGen does"""
    order: Literal["raster", "random-to-raster", "any", "masked"] = added_later("raster")
    """which codes a code is predicted from: raster: those before it, row by row; random-to-raster: the same in the end,
    after random orders in training; any: those before it in a random order of each image, so that known codes may lie
    anywhere; masked: any that are known, all others at once"""
    guidance_input: bool = added_later(False)
    """train the prior with the strength of guidance as an input, so that guided sampling takes one row of the batch for
    an image instead of two; training takes a third more time; from scale 1 on, without schedules"""
    mixtures: int = added_later(16)  # type: ignore[assignment]
    """latents of a continuous tokenizer only: Gaussians in the mixture of each position"""
    extra_codes: int = added_later(0)
    """rows of the code table and the head beyond the codebook, which some published priors have; a generator of images
    never samples them"""

    def __post_init__(self) -> None:
        self._take_size()
        shape = self.shape
        for name in ("d_model", "n_layers", "n_heads"):
            require(getattr(shape, name) > 0, name, getattr(shape, name), "a positive whole number")
        fits = shape.d_model % (4 * shape.n_heads) == 0
        require(fits, "n_heads", shape.n_heads, f"such that d_model = {shape.d_model} is a multiple of 4 n_heads")
        require(self.d_ff is None or self.d_ff > 0, "d_ff", self.d_ff, "a positive width, or null")
        require(self.positions in ("rope", "learned"), "positions", self.positions, "rope or learned")
        require(self.rope_base > 1, "rope_base", self.rope_base, "above 1")
        _require_other_names()
        require(self.block in KINDS or self.block in kinds(), "block", self.block, "one of " + ", ".join(kinds()))
        fits, expected = self.is_transformer or self.order == "raster", f"raster where block is {self.block}"
        require(fits, "order", self.order, expected)
        fits = not self.guidance_input or (self.is_transformer and self.class_conditional)
        require(fits, "guidance_input", self.guidance_input, f"false without classes, or where block is {self.block}")
        require(self.mixtures > 0, "mixtures", self.mixtures, "a positive whole number")
        require(self.reach > 0, "reach", self.reach, "a positive whole number")
        rotations = ("identity", "zero") if self.positions == "rope" else ("identity",)
        found, expected = self.class_rotation, "identity, or zero where positions are rope"
        require(found in rotations, "class_rotation", found, expected)
        require(self.order in PREDICTED, "order", self.order, "one of " + ", ".join(PREDICTED))
        plain, expected = self.order == "raster" or self.extra_codes == 0, "0 where order is not raster"
        require(plain, "extra_codes", self.extra_codes, expected)
        require(self.extra_codes >= 0, "extra_codes", self.extra_codes, "0 or more")
        for name in ("dropout", "token_dropout", "residual_dropout", "attention_dropout"):
            share = getattr(self, name)
            require(share is None or 0 <= share < 1, name, share, "from 0 to below 1")

    @property
    def shape(self) -> TransformerShape:
        """n_layers, n_heads and d_model as whole numbers."""
        assert self.d_model is not None and self.n_layers is not None and self.n_heads is not None
        return TransformerShape(self.n_layers, self.n_heads, self.d_model)

    @property
    def kind(self) -> str:
        """Dotted name of the class of priors."""
        return KINDS[self.block] if self.block in KINDS else kinds()[self.block]

    @property
    def is_transformer(self) -> bool:
        """Whether its class is the transformer."""
        return KINDS.get(self.block) == _TRANSFORMER

    @property
    def knows_target(self) -> bool:
        """Whether each input knows the position that it predicts."""
        return self.target_aware or self.order in ("random-to-raster", "any")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.shape.d_model // self.shape.n_heads

    @property
    def feed_forward_width(self) -> int:
        """``d_ff``, or the default derived from ``d_model``."""
        if self.d_ff is not None:
            return self.d_ff
        d_model = self.shape.d_model
        return 4 * d_model if self.block == "gpt" else -(-d_model * 8 // 3 // 32) * 32

    @property
    def dropouts(self) -> Dropouts:
        """The dropout rates in force."""
        own = (self.token_dropout, self.residual_dropout, self.attention_dropout)
        return Dropouts(*(self.dropout if each is None else each for each in own))

    @classmethod
    def saved(cls, values: Mapping[str, Any], where: str) -> PriorConfig:
        """The settings of a saved prior: its three numbers count, whatever the table says of its ``size`` today.

        Raises:
            ConfigError: as ``from_dict``.
        """
        config = from_dict(cls, {**values, "size": None}, where)
        object.__setattr__(config, "size", values.get("size"))
        return config

    def _take_size(self) -> None:
        """Fill in what is null; what is given must agree with a named size."""
        if self.size is not None and self.size not in SIZES:
            raise ConfigError("names no known size", field="size", found=self.size, fix=nearest(self.size, SIZES))
        named = SIZES[_DEFAULT_SIZE if self.size is None else self.size].shape
        for name in ("d_model", "n_layers", "n_heads"):
            given, taken = getattr(self, name), getattr(named, name)
            right = given in (None, taken) or self.size is None
            require(right, name, given, f"{taken} for size {self.size}, or null", f"leave out {name} or size")
            if given is None:
                object.__setattr__(self, name, taken)


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): few weights are trained, on top of start_from."""

    rank: int = 8
    """columns of A and B; more can learn more"""
    alpha: float = 16.0
    """scale: the change of a weight is alpha / rank times B A"""
    dropout: float = 0.0
    """dropout of what an adapter sees in training, from 0 to below 1"""
    target: tuple[str, ...] = ()
    """layers of each block that get adapters: qkv, out, gate_up (up in gpt blocks), down; [] takes all"""

    def __post_init__(self) -> None:
        require(self.rank > 0, "rank", self.rank, "a positive whole number")
        require(self.alpha > 0, "alpha", self.alpha, "above 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class PriorTraining:
    """How a prior is trained."""

    fit: FitConfig = field(default_factory=FitConfig)
    """length and cadence"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.05))
    """optimizer and learning rate"""
    label_dropout: float = 0.1
    """share of training examples whose label is replaced by the null class, which guidance needs"""
    views: Literal["all", "one"] = "all"
    """views in an epoch: every stored view of each image (centre, flip, crops), or one view of each image,
    chosen at random in each epoch"""
    average_decay: float = 0.99
    """decay of the exponential average of the weights, per step; 0 uses the last weights"""
    precision: Precision = "auto"
    """arithmetic of the transformer: float32, bf16, or auto, the faster one on the machine that begins the run; the
    loss always uses float32"""
    micro_batch_size: int | None = None
    """most examples in one forward pass of one process; a step takes as many passes as its share of batch_size needs;
    null puts the whole share through at once"""
    checkpoint_blocks: bool = False
    """keep only the inputs of blocks in a forward pass and compute the rest again: less memory, a third more time"""
    compile: bool = False
    """compile each block with torch.compile; the first step then takes a minute or more"""
    z_loss: float = 0.0
    """weight of the mean squared log-partition of the logits, e.g. 1e-4; keeps them from drifting in bf16"""
    residual_init: Literal["scaled", "zero"] = added_later("scaled")
    """first weights of what each attention and feed-forward layer adds: scaled is random, less with depth; zero lets
    every block begin as the identity; weights of start_from stay what they are"""
    label_smoothing: float = added_later(0.0)  # type: ignore[assignment]
    """share of the target that is spread evenly over all codes instead of the true one, from 0 to below 1; what is
    logged and evaluated is not smoothed"""
    regularizer: Regularizer | None = added_later(None)  # a field, not a shared value
    """reAR's noise and alignment, in training alone: {} takes its defaults; null trains without"""
    random_order: RandomOrder | None = None
    """predict codes in random order first, in raster order at the end; needs a model that is target_aware; null
    predicts in raster order throughout, or where the model's order is random-to-raster, changes from half of the steps
    to three quarters"""

    def order_share(self, order: str, step: int) -> float:
        """Share of images that a model of some ``order`` is given in random order at an optimizer step (from 0)."""
        if order == "any":
            return 1.0
        annealed, steps = self.random_order, self.fit.steps
        if annealed is None and order == "random-to-raster":
            annealed = RandomOrder(until_step=steps // 2, zero_step=3 * steps // 4)
        return 0.0 if annealed is None else annealed.share(step)

    def __post_init__(self) -> None:
        require(self.z_loss >= 0, "z_loss", self.z_loss, "0 or more")
        micro = self.micro_batch_size
        require(micro is None or micro > 0, "micro_batch_size", micro, "a positive whole number, or null")
        raster = 0 if self.random_order is None else self.random_order.zero_step
        expected, fix = f"below fit.steps, {self.fit.steps}", "training has to end in raster order"
        require(raster < self.fit.steps, "random_order.zero_step", raster, expected, fix)
        require_range(self, "from 0 to below 1", "label_smoothing")
        require(self.residual_init in ("scaled", "zero"), "residual_init", self.residual_init, "scaled or zero")
        require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "from 0 to below 1")
        require(0 <= self.average_decay < 1, "average_decay", self.average_decay, "from 0 to below 1")
