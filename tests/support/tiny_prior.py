"""A training of a prior in a second: synthetic codes with structure, one process or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from support.random_prior import spec

from foundation.codes.spec import CodeLevel
from foundation.training.clock import TIMINGS
from foundation.training.config import FitConfig, OptimConfig
from foundation.training.fit import fit
from foundation.training.log import MetricsLog, read_metrics
from stage2_prior.config import PriorConfig, PriorTraining, RandomOrder, Regularizer
from stage2_prior.data import CodeExamples
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorTask

N_CLASSES, N_IMAGES, STEPS, BATCH = 3, 37, 20, 8

EVERYTHING: dict[str, Any] = {
    "micro_batch_size": 3,
    "checkpoint_blocks": True,
    "average_decay": 0.9,
    "random_order": RandomOrder(until_step=5, zero_step=15),
    "label_dropout": 0.2,
    "z_loss": 1e-3,
    "label_smoothing": 0.05,
    "regularizer": Regularizer(noise=0.5),
    "optim": OptimConfig(learning_rate=3e-3, warmup_steps=4, schedule="wsd", matrices="muon", weight_decay=0.05),
}
"""Training options, all on."""

AWARE = {"target_aware": True}
KINDS: dict[str, dict[str, Any]] = {
    "random-to-raster": {"order": "random-to-raster"},
    "any": {"order": "any"},
    "masked": {"order": "masked"},
    "guidance-input": {"guidance_input": True},
    "masked, guidance-input": {"order": "masked", "guidance_input": True},
    "pixelcnn": {"block": "pixelcnn"},
}
"""name => options of a prior's architecture that change its training"""

_SPEC = spec((CodeLevel(height=2, width=3, codebook_size=11),), N_CLASSES)


class TinyTask(PriorTask):
    """Evaluates on its own training codes, is interrupted at step ``stop_at``, and records its batches."""

    def __init__(self, *arguments: Any, stop_at: int | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stop_at, self.seen = stop_at, {}

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> Any:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.seen[step] = batch["tokens"].numpy().copy()
        return super().train_step(batch, step)

    def evaluate(self) -> dict[str, float]:
        codes = dataset()
        tokens, labels = torch.from_numpy(codes.codes_NT.astype(np.int64)), torch.from_numpy(codes.labels_N)
        return {"nats_per_code": float(self.exported().nll(tokens, labels).mean())}


def dataset() -> Any:
    """Codes that depend on the class and on the codes before."""
    rng = np.random.default_rng(0)
    labels = np.arange(N_IMAGES) % N_CLASSES
    codes = (np.cumsum(rng.integers(0, 2, (N_IMAGES, _SPEC.n_codes)), axis=1) + 3 * labels[:, None]) % 11
    return SimpleNamespace(codes_NT=codes.astype(np.uint16), labels_N=labels, grids_N=None)


def tiny_task(
    accelerator: Accelerator,
    *,
    dropout: float = 0.0,
    stop_at: int | None = None,
    options: Mapping[str, Any] = AWARE,
    **training: Any,
) -> TinyTask:
    """A task with fresh weights, the same each time; ``options`` are of the architecture."""
    torch.manual_seed(0)
    config = PriorConfig(d_model=16, n_layers=2, n_heads=2, rope_base=100.0, dropout=dropout, **options)
    training = {
        "fit": fit_config(),
        "optim": OptimConfig(learning_rate=3e-3, warmup_steps=4, schedule="wsd"),
        **training,
    }
    model = PriorModel(config, _SPEC)
    how: dict[str, Any] = {"seed": 5, "stop_at": stop_at, "code_vectors_VC": code_vectors()}
    return TinyTask(model, PriorTraining(**training), None, accelerator, **how)


def code_vectors() -> torch.Tensor:
    """A vector of five channels for each code."""
    return torch.randn(11, 5, generator=torch.Generator().manual_seed(3))


def fit_config() -> FitConfig:
    """20 steps, a checkpoint every third."""
    return FitConfig(steps=STEPS, batch_size=BATCH, evaluate_every=5, checkpoint_every=3, log_every=1)


def train(folder: Path, task: TinyTask, accelerator: Accelerator, previews: Path | None = None) -> TinyTask:
    """Run ``fit`` in a folder, from its newest checkpoint on, to the end or to the task's ``stop_at``."""
    examples = CodeExamples(dataset(), N_CLASSES, label_dropout=task.training.label_dropout, seed=5)
    options: dict[str, Any] = {
        "seed": 3,
        "checkpoints": folder / "checkpoints",
        "log": MetricsLog(folder / "metrics.jsonl", "prior", enabled=accelerator.is_main_process),
        "identity": lambda steps: {"recipe": "tiny"},
        "optims": task.rates,
        "previews": previews,
    }
    try:
        fit(task, examples, task.training.fit, accelerator, **options)
    except KeyboardInterrupt:
        assert task.stop_at is not None
    return task


def rows(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The log without timings, which no run repeats."""
    found = read_metrics(folder / "metrics.jsonl", kind=kind)
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in found]


def column(folder: Path, name: str) -> list[float]:
    """One metric of every training step."""
    return [row[name] for row in rows(folder, "train")]
