"""Training steps of every kind on any device, and a count of what each waits for: ``python -m support.training_steps``.

Run it with the tests and the code to look at on the path: ``PYTHONPATH=.:tests``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator
from support.random_prior import LEVELS, examples, model

from foundation.config import from_dict
from foundation.images.config import Preprocess
from foundation.training.config import FitConfig
from foundation.training.fit import fit
from foundation.training.log import MetricsLog
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask
from stage2_prior.config import PriorTraining
from stage2_prior.train import PriorTask

PREPROCESS = Preprocess(height=16, width=24)
SIZES = {"base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "latent_channels": 8, "norm_groups": 4}
TOKENIZERS = {
    "fsq": {"quantizer": {"type": "fsq", "levels": [4, 4, 3], "evenness": 0.1}},
    "unit variance": {"quantizer": {"type": "fsq", "levels": [4, 4, 3], "unit_variance": True}},
    "ema": {"quantizer": {"type": "vq", "codebook_size": 40, "width": 4, "revive_every": 3}},
    "gradient": {
        "quantizer": {
            "type": "vq",
            "codebook_size": 40,
            "width": 4,
            "learning": "gradient",
            "normalize": True,
            "entropy_weight": 0.1,
        }
    },
    "rotation": {"quantizer": {"type": "vq", "codebook_size": 40, "width": 4, "rotation": True}},
    "simvq": {
        "quantizer": {
            "type": "vq",
            "codebook_size": 40,
            "learning": "gradient",
            "projection": True,
            "revive_below": 0.0,
        }
    },
    "lfq": {"quantizer": {"type": "lfq", "width": 5}},
    "bsq": {"quantizer": {"type": "bsq", "width": 5}},
    "residual": {"quantizer": {"type": "residual", "depth": 3, "codebook": {"codebook_size": 20, "width": 4}}},
    "gumbel": {"quantizer": {"type": "gumbel", "codebook_size": 40}},
    "ibq": {"quantizer": {"type": "ibq", "codebook_size": 40, "width": 4}},
    "kl": {"quantizer": {"type": "kl", "width": 4}},
    "transformers": {
        "networks": {"type": "vit", "patch_size": 4, "width": 16, "n_heads": 2},
        "quantizer": {"type": "vq", "codebook_size": 40, "width": 4},
    },
    "two grids": {"coarse_halvings": 1, "quantizer": {"type": "vq", "codebook_size": 40, "width": 4}},
}

STEPS = 3
GAN = {
    "weight": 0.5,
    "start_step": 1,
    "ramp_steps": 2,
    "lecam_weight": 0.1,
    "discriminator": {"n_layers": 1, "width": 8},
}
PERCEPTUAL = {"weight": 0.1, "vgg_weights": "random"}
TERMS = [
    {"type": "lite0", "stages": [2, 3], "side": 32, "weights": "random"},
    {"type": "alignment", "of": "both", "side": 32, "weights": "random"},
    {"type": "equivariance"},
    {"type": "texture"},
]
TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"average_decay": 0.5},
    "perceptual": {"perceptual": PERCEPTUAL},
    "adversarial": {"adversarial": GAN},
    "terms": {"terms": TERMS},
    "decoder refit": {"terms": TERMS, "freeze_coding_after": 0.5},
    "everything in micro-batches": {
        "adversarial": GAN,
        "terms": TERMS,
        "perceptual": PERCEPTUAL,
        "average_decay": 0.5,
        "micro_batch_size": 2,
    },
}
"""of a tokenizer"""
PRIORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged, with z-loss": {"average_decay": 0.5, "z_loss": 1e-3},
    "micro-batches": {"micro_batch_size": 2},
    "random order": {"random_order": {"until_step": 8, "zero_step": 9}, "fit": {"steps": 10, "batch_size": 3}},
    "recomputed": {"checkpoint_blocks": True},
    "muon": {"optim": {"matrices": "muon", "weight_decay": 0.05}},
    "smoothed": {"label_smoothing": 0.1},
    "regularized": {"regularizer": {"noise": 0.5}},
}
"""trainings of a prior"""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "any order": {"order": "any"},
    "masked": {"order": "masked"},
    "guidance as an input": {"guidance_input": True},
    "PixelCNN": {"block": "pixelcnn"},
}
"""options of a prior whose steps differ"""
Step = Callable[[int], dict[str, Any]]


def tokenizer(changes: dict[str, Any]) -> TokenizerModel:
    """A small tokenizer with attention, of 16 x 24 pixels."""
    torch.manual_seed(0)
    usual = {"latent_channels": 8} if "networks" in changes else {**SIZES, "attention_levels": [1]}
    return TokenizerModel(from_dict(TokenizerConfig, {**usual, **changes}), PREPROCESS)


def images() -> torch.Tensor:
    """Four images of noise."""
    return torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@contextmanager
def device_of_training(device: torch.device) -> Iterator[Accelerator]:
    """An accelerator for one process that trains on the device."""
    accelerator = Accelerator(cpu=device.type != "cuda")
    with mock.patch.object(Accelerator, "device", property(lambda self: device)):
        yield accelerator


def tokenizer_task(kind: str, settings: dict[str, Any], accelerator: Accelerator) -> TokenizerTask:
    """A tokenizer in training."""
    training = from_dict(TokenizerTraining, {"fit": {"steps": STEPS, "batch_size": 4}, **settings})
    model = tokenizer(TOKENIZERS[kind])
    objective = Objective(training, model, accelerator, seed=0)
    return TokenizerTask(model, training, objective, None, accelerator, seed=0)


def tokenizer_step(kind: str, settings: dict[str, Any], accelerator: Accelerator) -> Step:
    """Steps of a tokenizer's training, by their number."""
    task, batch = tokenizer_task(kind, settings, accelerator), {"images": images().to(accelerator.device)}
    return lambda step: task.train_step(batch, step)


def prior_step(
    settings: dict[str, Any], accelerator: Accelerator, options: dict[str, Any] | None = None, levels: int = -1
) -> Step:
    """Steps of a prior's training, by their number."""
    training = from_dict(PriorTraining, {"fit": {"steps": STEPS, "batch_size": 3}, **settings})
    aware = {"target_aware": True} if training.random_order else {}
    single = bool(aware or training.regularizer)
    prior = model(LEVELS[0 if single else levels], dropout=0.0, **{**aware, **(options or {})})
    vectors = torch.randn(prior.spec.codebook_size, 5, generator=torch.Generator().manual_seed(0))
    task = PriorTask(prior, training, None, accelerator, code_vectors_VC=vectors)
    tokens, labels = (each.to(accelerator.device) for each in examples(prior))
    batch = {"tokens": tokens, "labels": labels, "positions": torch.arange(3)}
    return lambda step: task.train_step(batch, step)


class _Images:
    """Endless examples for ``fit``."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        return {"images": images()[indices % 4]}


def loop_waits(device: torch.device, waits: Any, log_every: int = 4) -> list[dict[str, int]]:
    """What each of the steps of a whole training waits for, the loop's own reading and log lines included."""
    found: list[dict[str, int]] = []
    with device_of_training(device) as accelerator, tempfile.TemporaryDirectory() as folder:
        task = tokenizer_task("ema", {}, accelerator)
        task.evaluate = lambda: {"psnr": 10.0}  # type: ignore[method-assign]
        task.headline = lambda metrics: {}  # type: ignore[method-assign]
        task.state_dict = lambda: {}  # type: ignore[method-assign]
        step_of = task.train_step

        def train_step(batch: dict[str, torch.Tensor], step: int) -> Any:
            if step:
                found.append(dict(waits))
            waits.clear()
            return step_of(batch, step)

        task.train_step = train_step  # type: ignore[method-assign]
        log = MetricsLog(Path(folder) / "metrics.jsonl", "tokenizer")
        config = FitConfig(steps=10, batch_size=4, log_every=log_every, evaluate_every=100, checkpoint_every=100)
        where = {"checkpoints": Path(folder) / "checkpoints", "log": log, "identity": lambda steps: {}}
        fit(task, _Images(), config, accelerator, seed=0, **where)
    return found


def waits_by_kind() -> dict[str, dict[str, int]]:
    """Of each kind of training step, how often one after the first waits, by lines; on the device in name only."""
    from support.far_device import FAR, far_device

    found: dict[str, dict[str, int]] = {}
    with far_device() as waits:
        kinds = {f"tokenizer, {kind}": ("averaged", kind) for kind in TOKENIZERS}
        kinds |= {f"tokenizer, ema, {name}": (name, "ema") for name in TRAININGS if name != "averaged"}
        for title, (name, kind) in kinds.items():
            with device_of_training(FAR) as accelerator:
                found[title] = _most(tokenizer_step(kind, TRAININGS[name], accelerator), waits)
        priors = {name: (settings, {}, -1) for name, settings in PRIORS.items()}
        priors |= {name: ({}, options, 0) for name, options in ARCHITECTURES.items()}
        for name, arguments in priors.items():
            with device_of_training(FAR) as accelerator:
                found[f"prior, {name}"] = _most(prior_step(arguments[0], accelerator, *arguments[1:]), waits)
        steps = loop_waits(FAR, waits)
        found["loop, a step between log lines"], found["loop, a step with a log line"] = steps[5], steps[8]
    return found


def _most(step_of: Step, waits: Any) -> dict[str, int]:
    """The waits of the step that waits most, after the first, which places codebooks."""
    found: list[dict[str, int]] = []
    for step in range(STEPS):
        waits.clear()
        step_of(step)
        found.append(dict(waits))
    return max(found[1:], key=lambda each: sum(each.values()))


def main() -> None:
    """Print the table."""
    os.environ.setdefault("TESSERA_PRECISION", "float32")
    for title, lines in waits_by_kind().items():
        print(f"{title:50} {sum(lines.values()):3}")
        for line, n in lines.items():
            print(f"{'':54} {n} x {line}")


if __name__ == "__main__":
    main()
