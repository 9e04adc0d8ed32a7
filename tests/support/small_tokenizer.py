"""A training of a tokenizer in a second: 16 x 16 colour images, a VQ codebook of 32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from PIL import Image

from foundation.images.config import Preprocess
from foundation.images.image_set import ImageSet
from foundation.storage import durable
from foundation.training.config import FitConfig, OptimConfig
from stage1_tokenizer.canary import save_canary
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.quantizers.config import VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask

PREPROCESS = Preprocess(height=16, width=16)
CONFIG = TokenizerConfig(
    networks=VQGANNetworks(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=4, dropout=0.1),
    latent_channels=8,
    quantizer=VQConfig(codebook_size=32, width=4),
)


class Blots:
    """A source of synthetic images, a coloured blot each; two classes."""

    class_names = ("cold", "warm")

    def __init__(self, n: int = 64) -> None:
        self.ids = [f"blot-{i:03d}" for i in range(n)]
        self.labels = np.arange(n) % 2

    def read(self, index: int) -> Image.Image:
        rng = np.random.default_rng(index)
        y, x = np.mgrid[0:16, 0:16]
        (cy, cx), colour = rng.uniform(2, 14, 2), rng.uniform(-1, 1, 3)
        near = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 20)[..., None]
        return Image.fromarray((127 + 110 * near * colour + 15 * (x[..., None] / 16)).clip(0, 255).astype(np.uint8))


def training(steps: int = 40, **changes: object) -> TokenizerTraining:
    """Settings of the training; ``changes`` are further fields of ``TokenizerTraining``."""
    values = {
        "fit": FitConfig(steps=steps, batch_size=16, evaluate_every=1000, checkpoint_every=5),
        "optim": OptimConfig(learning_rate=3e-3, warmup_steps=5),
        "average_decay": 0.9,
    }
    return TokenizerTraining(**{**values, **changes})


def fresh_task(config: TokenizerConfig = CONFIG, images: ImageSet | None = None, **changes: object) -> TokenizerTask:
    """A task with its first weights, the same each time."""
    torch.manual_seed(0)
    plain = DistributedDataParallelKwargs(broadcast_buffers=False)  # as a run has it
    accelerator, settings = Accelerator(cpu=True, kwargs_handlers=[plain]), training(**changes)
    model = TokenizerModel(config, PREPROCESS)
    objective = Objective(settings, model, accelerator, seed=0)
    return TokenizerTask(model, settings, objective, images, accelerator, seed=0)


def trained_task(steps: int = 40) -> TokenizerTask:
    """A task after its steps."""
    images = ImageSet(Blots(), PREPROCESS)
    task = fresh_task(images=images, steps=steps)
    for step in range(steps):
        torch.manual_seed(step)
        indices = np.arange(step * 16, step * 16 + 16) % len(images)
        task.train_step(images.batch(indices, np.zeros(16, int)), step)
    return task


def freeze(task: TokenizerTask, folder: Path) -> Path:
    """Publish the averaged weights with a canary, as a run does."""
    assert task.validation is not None
    pixels = task.validation.pixels(np.arange(16))

    def fill(temporary: Path) -> None:
        task.exported().save(temporary)
        save_canary(task.exported(), pixels, temporary)

    durable.publish_folder(folder, fill)
    return folder
