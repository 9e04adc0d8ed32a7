"""Optimizer groups, learning-rate schedules and the guard against non-finite steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from foundation.errors import TrainingError
from foundation.training.config import OptimConfig


class DivergedError(TrainingError):
    """The weights, gradients or metrics of a training are no longer finite."""


MAX_BAD_STEPS = 10
WINDOW = 1000  # steps


def no_decay(parameter: nn.Parameter) -> nn.Parameter:
    """Tag a parameter, where it is created, as exempt from weight decay."""
    parameter.no_decay = True  # type: ignore[attr-defined]
    return parameter


def adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            plain = parameter.ndim >= 2 and not getattr(parameter, "no_decay", False)
            (decayed if plain else exempt).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.learning_rate,
        betas=betas,
        fused=all(not each.is_meta for each in module.parameters()),
    )


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """The learning rate of optimizer step ``step`` (from 0) of ``n_steps``: a pure function, nothing to resume.

    Sources: cosine: Loshchilov and Hutter 2017, arXiv:1608.03983; wsd: Hu et al. 2024, arXiv:2404.06395, with the
    decay 1 - sqrt of Hägele et al. 2024, arXiv:2405.18392.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    shape = _SHAPES[config.schedule](config, step, n_steps)
    return config.learning_rate * (config.min_factor + (1 - config.min_factor) * shape)


def _cosine(config: OptimConfig, step: int, n_steps: int) -> float:
    done = (step - config.warmup_steps) / max(1, n_steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _warmup_stable_decay(config: OptimConfig, step: int, n_steps: int) -> float:
    n_decay = config.decay_share * n_steps
    done = (step - (n_steps - n_decay)) / n_decay
    return 1.0 - math.sqrt(min(max(done, 0.0), 1.0))


_SHAPES = {"cosine": _cosine, "wsd": _warmup_stable_decay}
"""From 1 after the warm-up to 0 at the floor."""


class StepGuard:
    """Skips optimizer steps with a gradient that is not finite; stops training after too many.

    Attributes:
        n_skipped: steps skipped since the start of the run.
        n_in_a_row: steps skipped since the last good one.
        recent: for each step skipped within the last ``WINDOW``, how many steps ago.
    """

    def __init__(self) -> None:
        self.n_skipped = 0
        self.n_in_a_row = 0
        self.recent: list[int] = []

    def allows(self, gradient_norm: torch.Tensor) -> bool:
        """Whether this step may be taken.

        Raises:
            TrainingError: ten steps in a row, or more than one in a hundred of the last thousand, were not finite.
        """
        self.recent = [ago + 1 for ago in self.recent if ago + 1 < WINDOW]
        if bool(torch.isfinite(gradient_norm)):
            self.n_in_a_row = 0
            return True
        self.n_skipped += 1
        self.n_in_a_row += 1
        self.recent.append(0)
        if self.n_in_a_row >= MAX_BAD_STEPS:
            raise self._stopped(f"{MAX_BAD_STEPS} steps in a row")
        if len(self.recent) > MAX_BAD_STEPS:
            raise self._stopped(f"in {len(self.recent)} of the last {WINDOW:,} steps")
        return False

    def _stopped(self, when: str) -> TrainingError:
        fix = "lower the learning rate or clip_norm, or train in float32"
        return DivergedError(f"the gradient was not finite {when}", fix=fix)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"n_skipped": self.n_skipped, "n_in_a_row": self.n_in_a_row, "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``; checkpoints of early versions lack ``recent``."""
        self.n_skipped, self.n_in_a_row = state["n_skipped"], state["n_in_a_row"]
        self.recent = list(state.get("recent", []))
