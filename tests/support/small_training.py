"""A training of milliseconds, a regression with dropout, that a test can interrupt at any moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from foundation.training.config import FitConfig, OptimConfig
from foundation.training.fit import fit
from foundation.training.learner import Learner
from foundation.training.log import MetricsLog

STEPS = 12
CONFIG = FitConfig(steps=STEPS, batch_size=6, evaluate_every=3, checkpoint_every=4, log_every=1)
Interfere = Callable[[str, int], None]


class Numbers:
    """Pairs of numbers."""

    def __len__(self) -> int:
        return 25

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        return {
            "x": torch.from_numpy(np.stack([indices, epochs], 1)).float() / 25,
            "indices": torch.from_numpy(indices),
        }


class Regression:
    """A task; ``interfere`` is called with ("step" | "evaluate" | "save", how often that came before)."""

    def __init__(self, interfere: Interfere = lambda *_: None) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        options: dict[str, Any] = {"average_decay": 0.9, "precision": "float32", "accelerator": Accelerator(cpu=True)}
        self.learner = Learner(model, OptimConfig(learning_rate=0.01), STEPS, **options)
        self.interfere, self.counts, self.steps, self.seen = interfere, {}, [], []

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, Any]:
        self._moment("step")
        self.learner.wrapped.train()
        loss = (self.learner.wrapped(batch["x"])[:, 0] - batch["x"].sum(1)).square().mean()
        update = self.learner.apply(loss, step)
        self.learner.average.update(self.learner.model, step)
        self.steps.append(step)
        self.seen.append(batch["indices"].tolist())
        return update.metrics

    def evaluate(self) -> dict[str, float]:
        self._moment("evaluate")
        return {"score": float(next(self.exported().parameters()).sum())}

    def settle(self, metrics: Mapping[str, float]) -> None:
        self.learner.settle(metrics["skipped_steps"])

    def headline(self, metrics: Mapping[str, float]) -> dict[str, str]:
        return {}

    def is_sound(self, metrics: Mapping[str, float]) -> bool:
        return True

    def exported(self) -> nn.Module:
        return self.learner.average.model

    def state_dict(self) -> dict[str, Any]:
        self._moment("save")
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)

    def _moment(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, -1) + 1
        self.interfere(name, self.counts[name])


def train(folder: Path, task: Regression, config: FitConfig = CONFIG) -> Regression:
    """Run ``fit`` in a folder, from its newest checkpoint on."""
    log = MetricsLog(folder / "metrics.jsonl", "toy", enabled=task.learner.accelerator.is_main_process)
    fit(
        task,
        Numbers(),
        config,
        task.learner.accelerator,
        seed=3,
        checkpoints=folder / "checkpoints",
        log=log,
        identity=lambda steps: {"recipe": "small"},
    )
    return task


def weights(task: Regression) -> torch.Tensor:
    """Weights and averaged weights in one row."""
    both = (*task.learner.model.parameters(), *task.exported().parameters())
    return torch.cat([each.detach().flatten() for each in both]).clone()
