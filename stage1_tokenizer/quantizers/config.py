"""Settings of each quantizer, which build it; a recipe chooses one by its ``type`` key."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal

from foundation.config import Extensible, require, require_range
from foundation.config_fields import added_later


class QuantizerConfig(Extensible):
    """Base of the settings of all quantizers; a subclass is a frozen dataclass with a ``type_name``.

    Attributes:
        implementation: dotted name of the module that ``build`` calls with these settings; imported then.
        width: channels of what the quantizer gives the decoder.
        codebook_size: number of codes; 0 for a continuous quantizer.
        depth: codes at each position.
        is_discrete: whether there are codes; Gaussian latents have none, and so no prior.
        size_field: dotted name of the setting that is the codebook's size, for messages.
        codebook_sizes: number of codes at each depth, where the depths differ in it.
    """

    plugins = "tessera.quantizers"
    implementation: ClassVar[str]
    width: int
    codebook_size: int = 0
    depth: int = 1
    is_discrete: ClassVar[bool] = True
    size_field: ClassVar[str] = "codebook_size"
    codebook_sizes: tuple[int, ...] = ()

    def build(self) -> Any:
        """The ``Quantizer``, whose file is imported now; with random weights where it has any."""
        return resolve_name(self.implementation)(self)

    @property
    def latent_width(self) -> int:
        """Channels that the encoder must deliver."""
        return self.width

    def suggestions(self) -> list[str]:
        """What to change where most codes stay unused, each a noun phrase such as ``a smaller width``."""
        return ["a smaller codebook"]


@dataclass(frozen=True, kw_only=True)
class FSQConfig(QuantizerConfig):
    """Finite scalar quantization: each channel is rounded to a few levels."""

    type_name: ClassVar[str] = "fsq"
    implementation: ClassVar[str] = "stage1_tokenizer.quantizers.fsq.FSQ"

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """levels of each channel; the codebook has their product, here 1,000"""
    initial: Literal["whitened", "random"] = added_later("whitened")  # type: ignore[assignment]
    """how the projection before the rounding starts: so that the first batch's channels are uncorrelated and fill their
    levels, or at random"""
    evenness: float = 0.0
    """weight of a moment regulariser: the squared distance of the channels' means and covariances from their values
    under even use of all codes; above 0, channels decorrelate, and more of a large codebook is used sooner"""
    unit_variance: bool = added_later(False)  # type: ignore[assignment]
    """hold each channel at mean 0 and variance 1 before the rounding, by running statistics of the training's latents,
    and make the levels equally likely for a normal distribution (iFSQ, arXiv:2601.17124)"""

    def __post_init__(self) -> None:
        fits = len(self.levels) > 0 and all(2 <= level <= 1000 for level in self.levels)
        require(fits, "levels", self.levels, "at least one channel, each with 2 to 1,000 levels")
        require(self.codebook_size < 2**31, "levels", self.levels, "a product below 2^31")
        require_range(self, "0 or more", "evenness")

    @property
    def codebook_size(self) -> int:  # type: ignore[override]
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def width(self) -> int:  # type: ignore[override]
        """Channels that are quantized."""
        return len(self.levels)

    def suggestions(self) -> list[str]:
        """Coarser channels, a whitened start, more regularisation of moments."""
        start = [] if self.initial == "whitened" else ["initial: whitened"]
        return ["fewer or smaller levels", *start, f"evenness above {self.evenness:g}"]


@dataclass(frozen=True, kw_only=True)
class VQConfig(QuantizerConfig):
    """Vector quantization: each latent takes the nearest vector of a learned codebook."""

    type_name: ClassVar[str] = "vq"
    implementation: ClassVar[str] = "stage1_tokenizer.quantizers.vq.VQ"

    codebook_size: int = 1024
    """number of codes"""
    width: int = 8
    """channels of a code vector"""
    learning: Literal["ema", "gradient"] = "ema"
    """how codes follow their latents: by exponential averages, or by the optimizer through a codebook loss"""
    decay: float = 0.99
    """share of the running counts and sums kept at each step, 0 to below 1; with learning: ema"""
    commitment: float = 0.25
    """weight of the loss that pulls latents to their codes"""
    codebook_weight: float = 1.0
    """weight of the loss that pulls codes to their latents; with learning: gradient"""
    normalize: bool = False
    """put latents and codes on the unit sphere, so that the nearest code is the one with the largest cosine"""
    rotation: bool = False
    """pass the gradient through the rotation from latent to code instead of straight through"""
    projection: bool = False
    """freeze the codebook and learn one linear map of it, so that all codes move together; with learning: gradient"""
    initial: Literal["latents", "normal", "uniform"] = "latents"
    """where codes start: latents of the first batch, N(0, 1 / width), or +-1 / codebook_size, where most codes die"""
    kmeans_iterations: int = 10
    """rounds of k-means that refine initial: latents; 0 takes them as sampled"""
    revive_below: float = 0.05
    """a code used less than this share of uniform use is replaced by a latent of the batch; 0 never replaces"""
    revive_every: int = 10
    """optimizer steps between replacements; more where a code was not yet due to be used a few times"""
    entropy_weight: float = 0.0
    """weight of E[H(p)] - H(E[p]), which rewards certain choices and even use; 0 leaves it out"""
    entropy_temperature: float = 0.01
    """temperature of p = softmax(-squared distance / temperature)"""

    def __post_init__(self) -> None:
        require(self.codebook_size > 1, "codebook_size", self.codebook_size, "at least 2 codes")
        require_range(self, "above 0", "width", "revive_every", "entropy_temperature")
        require_range(self, "from 0 to below 1", "decay", "revive_below")
        require_range(self, "0 or more", "commitment", "codebook_weight", "kmeans_iterations", "entropy_weight")
        enough = not self.normalize or self.width > 1
        require(enough, "width", self.width, "2 or more with normalize", "one channel on the unit sphere is a sign")
        if self.projection:
            self._require_projection_can_work()

    def _require_projection_can_work(self) -> None:
        fix = "set learning: gradient, or projection: false"
        require(self.learning == "gradient", "learning", self.learning, "gradient, which moves the projection", fix)
        fix = "set rotation: false, or projection: false"
        require(not self.rotation, "rotation", self.rotation, "false with projection, which was shown without it", fix)
        fix = "set revive_below: 0; with a projection every code moves at every step"
        require(self.revive_below == 0, "revive_below", self.revive_below, "0 with projection: codes are frozen", fix)

    def suggestions(self) -> list[str]:
        """Fewer codes; data-dependent start, revival of unused codes and a narrow codebook where they are off."""
        found = ["a smaller codebook_size"]
        if self.projection:
            return [*found, "more steps, which a projection needs"]
        if self.initial != "latents":
            found.append("initial: latents")
        if self.revive_below == 0:
            found.append("revive_below: 0.05")
        if self.width > 8:
            found.append("a smaller width")
        return found


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(QuantizerConfig):
    """Residual vector quantization: each of several codes refines what those before it left over."""

    type_name: ClassVar[str] = "residual"
    implementation: ClassVar[str] = "stage1_tokenizer.quantizers.residual.ResidualVQ"
    size_field: ClassVar[str] = "codebook.codebook_size"

    depth: int = 4
    """codes at each position"""
    shared: bool = True
    """one codebook for all depths; otherwise each has its own"""
    codebook: VQConfig = field(default_factory=VQConfig)
    """the codebook of each depth: its size, width and learning"""
    codebook_sizes: tuple[int, ...] = added_later(())
    """number of codes at each depth, e.g. [24, 36], where the depths differ in it; empty takes codebook.codebook_size
    for all"""

    def __post_init__(self) -> None:
        require(self.depth > 0, "depth", self.depth, "at least one code at each position")
        if self.codebook_sizes:
            sizes, fix = list(self.codebook_sizes), "or leave codebook_sizes out"
            require(not self.shared, "shared", self.shared, f"false with codebook_sizes: {sizes}", fix)
            fits = len(sizes) == self.depth and min(sizes) > 1
            require(fits, "codebook_sizes", sizes, f"{self.depth} numbers of 2 or more, one for each depth", fix)
        for name in ("normalize", "rotation", "projection", "entropy_weight"):
            value = getattr(self.codebook, name)
            fix = "leave it out; sums of codes need plain vectors"
            require(not value, f"codebook.{name}", value, "off in a residual quantizer", fix)

    @property
    def width(self) -> int:  # type: ignore[override]
        """Channels of a code vector."""
        return self.codebook.width

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings in which ``codebook_size``, here or of ``codebook``, is a list: it becomes ``codebook_sizes``."""
        values = dict(values)
        inside = values.get("codebook")
        for owner in (values, dict(inside) if isinstance(inside, Mapping) else {}):
            if isinstance(owner.get("codebook_size"), (list, tuple)):
                values["codebook_sizes"] = owner.pop("codebook_size")
                values |= {"codebook": owner} if owner is not values else {}
        return values

    @property
    def codebook_size(self) -> int:  # type: ignore[override]
        """Number of codes at each depth; the largest where they differ."""
        return max(self.codebook_sizes, default=self.codebook.codebook_size)

    def codebook_at(self, depth: int) -> VQConfig:
        """Settings of the codebook of a depth."""
        if not self.codebook_sizes:
            return self.codebook
        return dataclasses.replace(self.codebook, codebook_size=self.codebook_sizes[depth])

    def suggestions(self) -> list[str]:
        """A smaller depth, and what helps its codebooks."""
        return [
            "a smaller depth",
            *(re.sub("^(a smaller )?", r"\1codebook.", each) for each in self.codebook.suggestions()),
        ]


class _BinaryConfig(QuantizerConfig):
    """What quantizers have in common whose channels are bits."""

    entropy_weight: float

    @property
    def codebook_size(self) -> int:  # type: ignore[override]
        """Number of codes."""
        return 1 << self.width

    def suggestions(self) -> list[str]:
        """Fewer bits, or a larger entropy term."""
        return ["a smaller width", f"entropy_weight above {self.entropy_weight:g}"]


@dataclass(frozen=True, kw_only=True)
class LFQConfig(_BinaryConfig):
    """Lookup-free quantization: the sign of each channel is one bit of the code."""

    type_name: ClassVar[str] = "lfq"
    implementation: ClassVar[str] = "stage1_tokenizer.quantizers.lfq.LFQ"

    width: int = 10
    """channels and bits; the codebook has 2^width codes"""
    commitment: float = 0.25
    """weight of the loss that pulls latents to their codes"""
    entropy_weight: float = 0.1
    """weight of E[H(p)] - H(E[p]), which rewards certain bits and even use of the codes"""
    entropy_temperature: float = 0.01
    """temperature of p = softmax(-squared distance / temperature)"""
    entropy_boost: float = 1.0
    """factor of the entropy's weight at step 0, falling linearly to 1"""
    boost_steps: int = 0
    """optimizer steps until the entropy's weight is no longer boosted"""

    def __post_init__(self) -> None:
        require(1 <= self.width <= 30, "width", self.width, "from 1 to 30 bits")
        require_range(self, "0 or more", "commitment", "entropy_weight", "boost_steps")
        require_range(self, "above 0", "entropy_temperature")
        require(self.entropy_boost >= 1, "entropy_boost", self.entropy_boost, "1 or more")


@dataclass(frozen=True, kw_only=True)
class BSQConfig(_BinaryConfig):
    """Binary spherical quantization: the sign of each channel of a unit-length latent is one bit of the code."""

    type_name: ClassVar[str] = "bsq"
    implementation: ClassVar[str] = "stage1_tokenizer.quantizers.bsq.BSQ"

    width: int = 10
    """channels and bits; the codebook has 2^width codes"""
    entropy_weight: float = 0.1
    """weight of the sum over bits of E[H(p)] - H(E[p]), which rewards certain bits and even use of each; 0 leaves it
    out"""
    entropy_temperature: float = 0.01
    """temperature of p = softmax(inner product of latent and code / temperature)"""
    initial: Literal["whitened", "random"] = "whitened"
    """how the projection to the latents starts: so that the first batch's channels are uncorrelated, or at random"""

    def __post_init__(self) -> None:
        require(2 <= self.width <= 30, "width", self.width, "from 2 to 30 bits")
        require_range(self, "0 or more", "entropy_weight")
        require_range(self, "above 0", "entropy_temperature")


@dataclass(frozen=True, kw_only=True)
class GumbelConfig(QuantizerConfig):
    """Gumbel-softmax: the encoder gives a logit for each code; training mixes codes ever more sharply."""

    type_name: ClassVar[str] = "gumbel"
    implementation: ClassVar[str] = "stage1_tokenizer.quantizers.gumbel.Gumbel"

    codebook_size: int = 1024
    """number of codes; the encoder delivers as many channels"""
    width: int = 64
    """channels of a code vector"""
    temperature_start: float = 1.0
    """temperature of the softmax at step 0"""
    temperature_end: float = 0.0625
    """temperature after temperature_steps"""
    temperature_steps: int = 10_000
    """optimizer steps from the first temperature to the last; 0 starts with the last"""
    temperature_shape: Literal["cosine", "exponential"] = "cosine"
    """how the temperature falls"""
    hard: bool = False
    """in training too, give the decoder one code instead of a mixture, with the mixture's gradient"""
    kl_weight: float = 5e-4
    """weight of KL(q || uniform), in nats, averaged over positions"""
    kl_warmup_steps: int = 0
    """optimizer steps in which the KL's weight rises linearly from 0"""
    logit_layer: bool = added_later(False)
    """the encoder delivers ``width`` channels instead, of which the quantizer makes logits by a 1 x 1 convolution"""

    def __post_init__(self) -> None:
        require(self.codebook_size > 1, "codebook_size", self.codebook_size, "at least 2 codes")
        require_range(self, "above 0", "width", "temperature_start", "temperature_end")
        require_range(self, "0 or more", "temperature_steps", "kl_weight", "kl_warmup_steps")

    @property
    def latent_width(self) -> int:
        """One logit for each code, or what the logits are made of."""
        return self.width if self.logit_layer else self.codebook_size

    def suggestions(self) -> list[str]:
        """Fewer codes, slower annealing, a stronger pull to uniform use."""
        steps, weight = f"temperature_steps above {self.temperature_steps:,}", f"kl_weight above {self.kl_weight:g}"
        return ["a smaller codebook_size", steps, weight]


@dataclass(frozen=True, kw_only=True)
class IBQConfig(QuantizerConfig):
    """Index backpropagation: every code gets a gradient through the softmax of its inner product with the latent."""

    type_name: ClassVar[str] = "ibq"
    implementation: ClassVar[str] = "stage1_tokenizer.quantizers.ibq.IBQ"

    codebook_size: int = 16_384
    """number of codes"""
    width: int = 32
    """channels of a code vector"""
    commitment: float = 1.0
    """weight of the loss that pulls latents to their codes"""
    codebook_weight: float = 0.25
    """weight of the loss that pulls the chosen codes to their latents"""
    double_weight: float = 1.0
    """weight of the squared error whose gradient reaches latents and, through the softmax, all codes"""
    entropy_weight: float = 0.05
    """weight of E[H(p)] - H(E[p]), which rewards certain choices and even use; 0 leaves it out"""
    entropy_temperature: float = 0.01
    """temperature of the entropies' p = softmax(inner product / temperature)"""

    def __post_init__(self) -> None:
        require(self.codebook_size > 1, "codebook_size", self.codebook_size, "at least 2 codes")
        require_range(self, "above 0", "width", "entropy_temperature")
        require_range(self, "0 or more", "commitment", "codebook_weight", "double_weight", "entropy_weight")

    def suggestions(self) -> list[str]:
        """Fewer codes, or a larger entropy term."""
        return ["a smaller codebook_size", f"entropy_weight above {self.entropy_weight:g}"]


@dataclass(frozen=True, kw_only=True)
class KLConfig(QuantizerConfig):
    """Gaussian latents with a KL penalty: continuous, so no codes and no prior."""

    type_name: ClassVar[str] = "kl"
    implementation: ClassVar[str] = "stage1_tokenizer.quantizers.kl.GaussianLatent"
    is_discrete: ClassVar[bool] = False

    width: int = 4
    """channels of the latents; the encoder delivers a mean and a log-variance for each"""
    weight: float = 1e-6
    """weight of the KL to N(0, 1), in nats, averaged over all latent values"""
    anneal_steps: int = 0
    """optimizer steps in which the weight rises linearly from 0"""
    scaling_factor: float = added_later(1.0)
    """what a diffusion model over these latents multiplies them by; only recorded, ``encode`` and ``decode`` leave it
    out"""

    def __post_init__(self) -> None:
        require_range(self, "above 0", "width", "scaling_factor")
        require_range(self, "0 or more", "weight", "anneal_steps")

    @property
    def latent_width(self) -> int:
        """A mean and a log-variance for each channel."""
        return 2 * self.width
