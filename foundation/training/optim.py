"""Optimizer groups, learning-rate schedules and the guard against non-finite steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from foundation.config import require
from foundation.errors import TrainingError
from foundation.training.config import OptimConfig
from foundation.training.muon import Muon, is_hidden_matrix


class DivergedError(TrainingError):
    """The weights, gradients or metrics of a training are no longer finite."""


MAX_BAD_STEPS = 10
WINDOW = 1000  # steps


def no_decay(parameter: nn.Parameter) -> nn.Parameter:
    """Tag a parameter, where it is created, as exempt from weight decay."""
    parameter.no_decay = True  # type: ignore[attr-defined]
    return parameter


def adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only (Loshchilov and Hutter 2019, arXiv:1711.05101).

    It leaves out the parameters that are ``muon``'s.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    others = {id(each) for each in _matrices(module, config)}
    for parameter in module.parameters():
        if parameter.requires_grad and id(parameter) not in others:
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


def muon(module: nn.Module, config: OptimConfig, arithmetic: torch.dtype = torch.float32) -> Muon | None:
    """Muon for the hidden matrices that are trained; None where AdamW trains them too.

    Args:
        module: some parameters are tagged as ``hidden_matrix``.
        config: settings.
        arithmetic: see ``Muon``.

    Raises:
        ConfigError: muon is asked for, and no hidden matrix is trained.
    """
    if config.matrices == "adamw":
        return None
    matrices, of_matrices = _matrices(module, config), config.of_matrices
    expected, fix = "adamw where no hidden matrix is trained", "leave optim.matrices out"
    require(len(matrices) > 0, "optim.matrices", config.matrices, expected, fix)
    how = {"momentum": config.matrix_momentum, "weight_decay": of_matrices.weight_decay}
    return Muon(matrices, of_matrices.learning_rate, arithmetic=arithmetic, **how)


def _matrices(module: nn.Module, config: OptimConfig) -> list[nn.Parameter]:
    """The parameters that Muon trains."""
    if config.matrices == "adamw":
        return []
    return [each for each in module.parameters() if each.requires_grad and is_hidden_matrix(each)]


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


def reads_freely(device: torch.device) -> bool:
    """Whether a value on the device can be read without stopping it.

    A CPU's can. MPS counts as such too: its fused AdamW cannot skip a step by itself. Nothing is computed on meta.
    """
    return device.type in ("cpu", "mps", "meta")


def known_skipped(taken: torch.Tensor) -> bool:
    """Whether a step is known not to have been taken; on a GPU nobody knows before the next log line."""
    return reads_freely(taken.device) and not taken


@contextlib.contextmanager
def undone_unless(taken: torch.Tensor | None, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Changes of these tensors in here hold only if the step was taken, which is decided on the device.

    Args:
        taken: a boolean, 0-dim; None, or one that is known, leaves the decision to the caller.
        tensors: copied before, where the decision is the device's.
    """
    if taken is None or reads_freely(taken.device):
        yield
        return
    with torch.no_grad():
        before = [(each, each.detach().clone()) for each in tensors]
    yield
    with torch.no_grad():
        for each, old in before:
            each.copy_(torch.where(taken, each, old))


class StepGuard:
    """Skips optimizer steps with a gradient that is not finite; stops training after too many.

    On a CPU each step is counted at once. On a GPU that would stop it: there steps wait to be counted until ``settle``,
    and training stops by so many steps later.

    Attributes:
        n_skipped: steps skipped since the start of the run, of those that were counted.
        n_in_a_row: steps skipped since the last good one.
        recent: for each step skipped within the last ``WINDOW``, how many steps ago.
        skipped: ``n_skipped`` with the steps that wait: a number, or a scalar on the GPU.
    """

    def __init__(self) -> None:
        self.n_skipped = 0
        self.n_in_a_row = 0
        self.recent: list[int] = []
        self.skipped: int | torch.Tensor = 0
        self._waiting: list[torch.Tensor] = []

    def allows(self, gradient_norm: torch.Tensor, offered: torch.Tensor | None = None) -> torch.Tensor:
        """Whether this step may be taken, a boolean on the norm's device.

        Args:
            gradient_norm: a scalar.
            offered: whether there is a step at all, a boolean on the same device; None for yes. A step that is not
                offered is not allowed and does not count.

        Raises:
            TrainingError: ten steps in a row, or more than one in a hundred of the last thousand, were not finite;
                where reading is free.
        """
        finite = torch.isfinite(gradient_norm)
        if reads_freely(finite.device):
            if offered is not None and not offered:
                return offered
            self._count(bool(finite))
            self.skipped = self.n_skipped
            return finite
        offered = torch.ones_like(finite) if offered is None else offered
        self._waiting.append(torch.stack([offered, finite]))
        self.skipped = self.skipped + (offered & ~finite)
        return offered & finite

    def settle(self, n_skipped: float | None = None) -> None:
        """Count the steps that wait.

        Args:
            n_skipped: the value of ``skipped``, if it was read already: the device is asked only if steps were skipped.

        Raises:
            TrainingError: as ``allows``.
        """
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        steps = [(1, 1)] * len(waiting) if n_skipped == self.n_skipped else torch.stack(waiting).tolist()
        for offered, finite in steps:
            if offered:
                self._count(bool(finite))

    def _count(self, finite: bool) -> None:
        self.recent = [ago + 1 for ago in self.recent if ago + 1 < WINDOW]
        if finite:
            self.n_in_a_row = 0
            return
        self.n_skipped += 1
        self.n_in_a_row += 1
        self.recent.append(0)
        if self.n_in_a_row >= MAX_BAD_STEPS:
            raise self._stopped(f"{MAX_BAD_STEPS} steps in a row")
        if len(self.recent) > MAX_BAD_STEPS:
            raise self._stopped(f"in {len(self.recent)} of the last {WINDOW:,} steps")

    def _stopped(self, when: str) -> TrainingError:
        fix = "lower the learning rate or clip_norm, or train in float32"
        return DivergedError(f"the gradient was not finite {when}", fix=fix)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint; counts the steps that wait."""
        self.settle()
        return {"n_skipped": self.n_skipped, "n_in_a_row": self.n_in_a_row, "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``; checkpoints of early versions lack ``recent``."""
        self.n_skipped, self.n_in_a_row = state["n_skipped"], state["n_in_a_row"]
        self.recent, self.skipped, self._waiting = list(state.get("recent", [])), self.n_skipped, []
