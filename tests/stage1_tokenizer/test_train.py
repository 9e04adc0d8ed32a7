import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from foundation.fit import FitConfig
from foundation.image_set import ImageSet
from foundation.images import Preprocess
from foundation.optim import OptimConfig
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.quantizers import FSQConfig, QuantizerConfig, VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask

PREPROCESS = Preprocess(height=8, width=8, mode="L")


class Ramps:
    """Images with structure, made on the spot."""

    class_names = ()
    labels = None

    def __init__(self) -> None:
        self.ids = [f"ramp-{i:03d}" for i in range(64)]

    def read(self, index: int) -> Image.Image:
        y, x = np.mgrid[0:8, 0:8]
        angle = index / 64 * 2 * np.pi
        return Image.fromarray((127 + 18 * (np.cos(angle) * (y - 3.5) + np.sin(angle) * (x - 3.5))).astype(np.uint8))


def task(quantizer: QuantizerConfig, precision: str = "float32") -> tuple[TokenizerTask, ImageSet]:
    torch.manual_seed(0)
    images = ImageSet(Ramps(), PREPROCESS)
    config = TokenizerConfig(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, latent_channels=8, norm_groups=4,
                             quantizer=quantizer)  # fmt: skip
    training = TokenizerTraining(
        fit=FitConfig(steps=60, batch_size=32),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
        average_decay=0.8,
        precision=precision,
    )  # fmt: skip
    accelerator = Accelerator(cpu=True)
    objective = Objective(training, PREPROCESS, accelerator, seed=0)
    model = TokenizerModel(config, PREPROCESS)
    return TokenizerTask(model, training, objective, images, accelerator, seed=0), images


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("quantizer", [FSQConfig(levels=(5, 5, 5)), VQConfig(codebook_size=64, width=6)])
def test_training_improves_the_held_out_reconstruction(quantizer: QuantizerConfig, precision: str) -> None:
    learner, images = task(quantizer, precision)
    before = learner.evaluate()["psnr"]
    for step in range(60):
        indices = np.arange(step * 32, step * 32 + 32) % 64
        learner.train_step(images.batch(indices, np.zeros(32, int)), step)
    after = learner.evaluate()
    assert after["psnr"] > before + 6
    assert after["code_usage"] > 0.1 and after["code_perplexity"] > 2


def test_a_nan_in_an_image_changes_nothing_and_is_counted() -> None:
    learner, images = task(VQConfig(codebook_size=64, width=6))
    batch = images.batch(np.arange(32), np.zeros(32, int))
    learner.train_step(batch, 0)
    model = {name: value.clone() for name, value in learner.model.state_dict().items()}
    average = {name: value.clone() for name, value in learner.exported().state_dict().items()}
    batch["images"][3, 0, 2, 2] = torch.nan
    metrics = learner.train_step(batch, 1)
    assert metrics["skipped_steps"] == 1
    assert all(torch.equal(value, model[name]) for name, value in learner.model.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in learner.exported().state_dict().items())
    assert learner.train_step(images.batch(np.arange(32), np.zeros(32, int)), 2)["skipped_steps"] == 1
