"""What a prior is made of and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.config import require
from foundation.fit import FitConfig
from foundation.learner import Precision
from foundation.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Size of the transformer; vocabulary, grid and classes follow from the codes."""

    d_model: int = 256
    """width"""
    n_layers: int = 6
    """blocks"""
    n_heads: int = 4
    """attention heads; d_model / n_heads must be a multiple of 4 for rotations by row and column"""
    d_ff: int | None = None
    """width of the feed-forward layer; null takes 8/3 of d_model, rounded up to a multiple of 32"""
    rope_base: float = 10_000.0
    """base of the rotary frequencies; small grids train better with a small base, such as 100"""
    qk_norm: bool = True
    """normalise queries and keys per head before rotating them"""
    dropout: float = 0.1
    """dropout of embeddings, attention and residual branches in training, 0 to below 1"""
    class_conditional: bool = True
    """condition on labels where the codes have them; false trains an unconditional prior"""

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive whole number")
        fits = self.d_model % self.n_heads == 0 and self.d_head % 4 == 0
        require(fits, "n_heads", self.n_heads, f"a divisor of d_model = {self.d_model} with d_model / n_heads a "
                "multiple of 4")  # fmt: skip
        require(self.d_ff is None or self.d_ff > 0, "d_ff", self.d_ff, "a positive width, or null")
        require(self.rope_base > 1, "rope_base", self.rope_base, "above 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def feed_forward_width(self) -> int:
        """``d_ff``, or the default derived from ``d_model``."""
        return self.d_ff if self.d_ff is not None else -(-self.d_model * 8 // 3 // 32) * 32


@dataclass(frozen=True, kw_only=True)
class PriorTraining:
    """How a prior is trained."""

    fit: FitConfig = field(default_factory=FitConfig)
    """length and cadence"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.05))
    """optimizer and learning rate"""
    label_dropout: float = 0.1
    """share of training examples whose label is replaced by the null class, which guidance needs"""
    average_decay: float = 0.99
    """decay of the exponential average of the weights, per step; 0 uses the last weights"""
    precision: Precision = "float32"
    """arithmetic of the transformer; the loss always uses float32"""

    def __post_init__(self) -> None:
        require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "from 0 to below 1")
        require(0 <= self.average_decay < 1, "average_decay", self.average_decay, "from 0 to below 1")
