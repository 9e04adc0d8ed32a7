import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from foundation.errors import TrainingError
from foundation.images.config import Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.preprocess import to_unit_range
from foundation.training.config import FitConfig, OptimConfig
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.quantizers.config import FSQConfig, GumbelConfig, KLConfig, QuantizerConfig, VQConfig
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


def task(
    quantizer: QuantizerConfig, precision: str = "float32", matrices: str = "adamw"
) -> tuple[TokenizerTask, ImageSet]:
    torch.manual_seed(0)
    images = ImageSet(Ramps(), PREPROCESS)
    config = TokenizerConfig(
        networks=VQGANNetworks(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=4),
        latent_channels=8,
        quantizer=quantizer,
    )
    training = TokenizerTraining(
        fit=FitConfig(steps=60, batch_size=32),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=5, matrices=matrices),
        average_decay=0.8,
        precision=precision,
    )
    accelerator = Accelerator(cpu=True)
    model = TokenizerModel(config, PREPROCESS)
    objective = Objective(training, model, accelerator, seed=0)
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


def test_muon_trains_the_kernels_between_the_first_and_the_last_of_each_network() -> None:
    learner, images = task(FSQConfig(levels=(5, 5, 5)), matrices="muon")
    names = {id(each): name for name, each in learner.model.named_parameters()}
    taken = {names[id(each)] for each in learner.learner.muon.param_groups[0]["params"]}
    ends = {f"{part}.{end}.weight" for part in ("encoder", "decoder") for end in ("conv_in", "conv_out")}
    convolutions = {f"{name}.weight" for name, each in learner.model.named_modules() if isinstance(each, nn.Conv2d)}
    assert taken == {name for name in convolutions - ends if not name.startswith("bottleneck.")} and len(taken) > 8
    before = learner.evaluate()["psnr"]
    for step in range(30):
        learner.train_step(images.batch(np.arange(step * 32, step * 32 + 32) % 64, np.zeros(32, int)), step)
    assert learner.evaluate()["psnr"] > before + 6


def test_what_changes_with_the_step_is_told_the_step() -> None:
    learner, images = task(KLConfig(width=4, weight=1.0, anneal_steps=10))
    batch = images.batch(np.arange(32), np.zeros(32, int))
    terms = [float(learner.train_step(batch, step)["loss_kl"]) for step in (0, 5)]
    assert terms[0] == 0.0 < terms[1]
    learner, _ = task(GumbelConfig(codebook_size=16, width=4, temperature_steps=10))
    temperatures = [float(learner.train_step(batch, step)["temperature"]) for step in (0, 10)]
    assert temperatures == pytest.approx([1.0, 0.0625])


def test_a_skipped_step_leaves_nothing_behind_for_the_next_update() -> None:
    learner, images = task(VQConfig(codebook_size=16, width=4))
    batch = images.batch(np.arange(32), np.zeros(32, int))
    learner.train_step(batch, 0)
    spoilt = {"images": to_unit_range(batch["images"])}
    spoilt["images"][0, 0, 0, 0] = torch.nan
    learner.train_step(spoilt, 1)
    quantizer = learner.model.quantizers[0]
    before = quantizer.codebook.clone()
    quantizer.update(1, torch.Generator())
    assert torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("quantizer", [FSQConfig(levels=(5, 5, 5)), VQConfig(codebook_size=16, width=4)])
def test_a_first_batch_that_is_not_finite_places_nothing_and_is_named(quantizer: QuantizerConfig) -> None:
    learner, images = task(quantizer)
    batch = images.batch(np.arange(32), np.zeros(32, int))
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    spoilt = {"images": to_unit_range(batch["images"])}
    spoilt["images"][0, 0, 0, :2] = torch.nan
    with pytest.raises(TrainingError, match=r"images: .*not finite(.|\n)*found: +2 of them"):
        learner.train_step(spoilt, 0)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    with torch.no_grad():
        learner.model.encoder.conv_in.bias.fill_(torch.inf)
    with pytest.raises(TrainingError, match=r"the encoder's features(.|\n)*precision: float32"):
        learner.train_step(batch, 0)


def test_the_adaptive_weight_is_taken_at_the_decoders_last_layer() -> None:
    learner, images = task(FSQConfig(levels=(5, 5, 5)))
    seen = []

    class Objective:
        def __call__(self, batch, last_layer):
            seen.append(last_layer)
            return (batch.reconstructions_BCYX - batch.images_BCYX).square().mean(), {}

        def train_terms(self, step, offered):
            return {}

        def train_adversary(self, images, reconstructions, step, offered):
            return {}

    learner.objective = Objective()
    learner.train_step(images.batch(np.arange(32), np.zeros(32, int)), 0)
    assert seen[0] is learner.model.decoder.conv_out.weight


def test_a_nan_in_an_image_changes_nothing_and_is_counted() -> None:
    learner, images = task(VQConfig(codebook_size=64, width=6))
    batch = images.batch(np.arange(32), np.zeros(32, int))
    learner.train_step(batch, 0)
    model = {name: value.clone() for name, value in learner.model.state_dict().items()}
    average = {name: value.clone() for name, value in learner.exported().state_dict().items()}
    spoilt = to_unit_range(batch["images"])
    spoilt[3, 0, 2, 2] = torch.nan
    metrics = learner.train_step({"images": spoilt}, 1)
    assert metrics["skipped_steps"] == 1
    assert all(torch.equal(value, model[name]) for name, value in learner.model.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in learner.exported().state_dict().items())
    assert learner.train_step(images.batch(np.arange(32), np.zeros(32, int)), 2)["skipped_steps"] == 1


def test_a_reconstruction_worse_than_any_grey_image_is_not_sound() -> None:
    trained, _ = task(FSQConfig())
    assert trained.is_sound({"psnr": 6.0}) and not trained.is_sound({"psnr": 1.0})
