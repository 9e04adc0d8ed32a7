"""Configuration of a training: its length and cadence, the optimizer, the arithmetic. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from foundation.config import require, require_range
from foundation.config_fields import added_later

Precision = Literal["auto", "float32", "bf16"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class Falling:
    """What falls linearly to 0 over a share of a training's steps.

    Attributes:
        start: its value at the first step.
        share: of all steps, above 0 to 1.
    """

    start: float
    share: float

    @property
    def has_plateau(self) -> bool:
        """Whether it is constant at first."""
        return self.start == 0

    def at(self, step: int, n_steps: int) -> float:
        """The line at a step (from 0) of a training of ``n_steps``, which goes on below 0."""
        return self.start * (1 - step / (self.share * n_steps))

    def value(self, step: int, n_steps: int) -> float:
        """Its value, never below 0."""
        return max(0.0, self.at(step, n_steps))


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Length and cadence of a training."""

    steps: int = 1000
    """optimizer steps"""
    batch_size: int = 64
    """examples in one optimizer step, over all processes"""
    evaluate_every: int = 100
    """optimizer steps between evaluations on the validation set"""
    checkpoint_every: int = 100
    """optimizer steps between checkpoints"""
    keep_checkpoints: int = 2
    """how many checkpoints stay on disk; at least two do"""
    log_every: int = 10
    """optimizer steps between lines of training metrics"""
    evaluate_images: int | None = added_later(None)
    """most validation images, or rows of codes, of an evaluation in training: a fixed random choice; null takes all.
    tessera evaluate takes all in any case"""
    evaluate_at_start: bool = added_later(True)  # type: ignore[assignment]
    """evaluate before the first step too"""
    preview_images: int = added_later(8)  # type: ignore[assignment]
    """images in the picture of each evaluation: reconstructions of the tokenizer, samples of the prior; 0 draws none"""

    def __post_init__(self) -> None:
        lengths = ("steps", "batch_size", "evaluate_every", "checkpoint_every", "keep_checkpoints", "log_every")
        require_range(self, "above 0", *lengths)
        require_range(self, "0 or more", "preview_images")
        limit = self.evaluate_images
        require(limit is None or limit > 0, "evaluate_images", limit, "a positive whole number, or null")

    @property
    def n_evaluations(self) -> int:
        """Evaluations of a training: every ``evaluate_every`` steps, and after the last."""
        return -(-self.steps // self.evaluate_every) + self.evaluate_at_start

    def n_evaluated(self, n_images: int) -> int:
        """How many of ``n_images`` validation images an evaluation takes."""
        return n_images if self.evaluate_images is None else min(n_images, self.evaluate_images)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, or Muon for hidden matrices and AdamW for the rest, and their learning rates."""

    learning_rate: float = 3e-4
    """peak learning rate"""
    min_factor: float = 0.05
    """learning rate at the end, as a share of the peak, 0 to 1"""
    warmup_steps: int = 50
    """optimizer steps of linear warm-up"""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """shape of the learning rate after the warm-up; wsd is constant and then falls over the last decay_share of the
    steps"""
    decay_share: float = 0.2
    """share of all steps over which wsd falls to its floor, above 0 to 1; the other schedules do not use it"""
    beta1: float = 0.9
    """decay of the gradient's average, 0 to 1"""
    beta2: float = 0.95
    """decay of the squared gradient's average, 0 to 1"""
    weight_decay: float = 0.0
    """decoupled weight decay of matrices and kernels; biases, norms and tagged parameters have none"""
    clip_norm: float | None = 1.0
    """largest gradient norm; a larger gradient is scaled down to it; null never scales"""
    matrices: Literal["adamw", "muon"] = added_later("adamw")  # type: ignore[assignment]
    """optimizer of hidden matrices: of a prior the weights of its blocks, of a tokenizer the kernels between the first
    and the last of encoder and decoder; muon steps along the momentum with all singular values near 1"""
    matrix_learning_rate: float | None = added_later(None)
    """peak learning rate of muon, whose steps are as large as adamw's at the same rate; null takes
    learning_rate"""
    matrix_momentum: float = added_later(0.95)  # type: ignore[assignment]
    """decay of muon's average of gradients, 0 to 1"""
    matrix_weight_decay: float | None = added_later(None)
    """decoupled weight decay of muon; null takes weight_decay"""

    def __post_init__(self) -> None:
        require_range(self, "above 0", "learning_rate")
        require_range(self, "from 0 to 1", "min_factor")
        require(0 < self.decay_share <= 1, "decay_share", self.decay_share, "a share above 0, up to 1")
        require_range(self, "0 or more", "warmup_steps", "weight_decay")
        require_range(self, "from 0 to below 1", "beta1", "beta2", "matrix_momentum")
        rate, decay = self.matrix_learning_rate, self.matrix_weight_decay
        require(rate is None or rate > 0, "matrix_learning_rate", rate, "above 0, or null")
        require(decay is None or decay >= 0, "matrix_weight_decay", decay, "0 or more, or null")
        fits = self.clip_norm is None or self.clip_norm > 0
        require(fits, "clip_norm", self.clip_norm, "a positive number, or null")

    @property
    def without_muon(self) -> OptimConfig:
        """These settings with AdamW for all parameters."""
        return replace(self, matrices="adamw")

    @property
    def of_matrices(self) -> OptimConfig:
        """These settings with muon's learning rate and weight decay as the only ones."""
        rate = self.learning_rate if self.matrix_learning_rate is None else self.matrix_learning_rate
        decay = self.weight_decay if self.matrix_weight_decay is None else self.matrix_weight_decay
        return replace(self, learning_rate=rate, weight_decay=decay)
