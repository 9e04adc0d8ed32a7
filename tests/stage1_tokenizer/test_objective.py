from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.quantizers.config import FSQConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask, require_enough_data

PREPROCESS = Preprocess(height=32, width=32)
GAN = {
    "fit": {"steps": 8, "batch_size": 4},
    "optim": {"learning_rate": 1e-3, "warmup_steps": 0},
    "perceptual": {"weight": 0.1, "vgg_weights": "random"},
    "adversarial": {
        "weight": 0.1,
        "start_step": 2,
        "ramp_steps": 2,
        "lecam_weight": 0.001,
        "discriminator": {"width": 8, "n_layers": 2},
    },
}


def build(**changes: Any) -> TokenizerTask:
    torch.manual_seed(0)
    training = from_dict(TokenizerTraining, {**GAN, **changes})
    accelerator = Accelerator(cpu=True)
    config = TokenizerConfig(
        networks=VQGANNetworks(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=4),
        latent_channels=8,
        quantizer=FSQConfig(levels=(5, 5, 5)),
    )
    model = TokenizerModel(config, PREPROCESS)
    objective = Objective(training, model, accelerator, seed=0)
    return TokenizerTask(model, training, objective, None, accelerator, seed=0)


def batch(step: int) -> dict[str, torch.Tensor]:
    return {"images": torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1}


def train(task: TokenizerTask, steps: range) -> list[dict[str, float]]:
    rows = []
    for step in steps:
        torch.manual_seed(step)
        rows.append({name: float(value) for name, value in task.train_step(batch(step), step).items()})
    return rows


def test_every_term_is_in_the_loss_and_in_the_log() -> None:
    rows = train(build(), range(4))
    early, late = rows[0], rows[3]
    assert early["loss"] == pytest.approx(early["loss_pixel"] + 0.1 * early["loss_perceptual"], rel=1e-5)
    assert "discriminator_loss" not in early and "loss_adversarial" not in early
    term = 0.1 * late["gan_ramp"] * late["adaptive_weight"] * late["loss_adversarial"]
    expected = late["loss_pixel"] + 0.1 * late["loss_perceptual"] + term
    assert late["loss"] == pytest.approx(expected, rel=1e-4)
    assert {"logits_real", "logits_fake", "lecam", "discriminator_gradient_norm"} <= late.keys()
    assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_a_weight_scales_its_term() -> None:
    (row,) = train(build(pixel_weight=3.0, perceptual={"weight": 0.0}), range(1))
    assert row["loss"] == pytest.approx(3 * row["loss_pixel"], rel=1e-5) and "loss_perceptual" not in row


def test_a_resumed_gan_training_takes_the_same_steps() -> None:
    whole = build()
    train(whole, range(4))
    state = {"saved": whole.state_dict()}
    saved = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)["saved"]
    expected = train(whole, range(4, 6))
    resumed = build()
    resumed.load_state_dict(saved)
    assert train(resumed, range(4, 6)) == expected
    for name, value in resumed.exported().state_dict().items():
        assert torch.equal(value, whole.exported().state_dict()[name]), name


def test_a_nan_in_an_image_leaves_the_discriminator_alone_too() -> None:
    task = build()
    train(task, range(3))
    adversary = task.objective.adversary
    assert adversary is not None
    before = {name: value.clone() for name, value in adversary.learner.model.state_dict().items()}
    images = batch(3)["images"]
    images[1, 0, 5, 5] = torch.nan
    metrics = task.train_step({"images": images}, 3)
    assert metrics["skipped_steps"] == 1 and "discriminator_loss" not in metrics
    assert all(torch.equal(value, before[name]) for name, value in adversary.learner.model.state_dict().items())


def test_missing_vgg_weights_stop_it_before_any_data_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refuse_download: Callable[[], None]
) -> None:
    from pipeline.commands.start import start_run

    job = start_run(
        "digits",
        str(tmp_path / "run"),
        {"tokenizer.training.perceptual": {"weight": 1.0}, "data.preprocess": {"height": 32, "width": 32, "mode": "L"}},
    )

    def read(*arguments: object, **options: object) -> None:
        raise AssertionError("data was read first")

    monkeypatch.setattr("pipeline.runs.stages.list_images", read)
    with pytest.raises(ConfigError, match="TESSERA_VGG16"):
        job.train_tokenizer()


def test_images_too_small_for_lpips_are_refused_before_any_data_is_read() -> None:
    training, preprocess = (
        from_dict(TokenizerTraining, {"perceptual": {"weight": 1.0, "vgg_weights": "random"}}),
        Preprocess(height=8, width=8),
    )
    with pytest.raises(ConfigError, match=r"perceptual.weight(.|\n)*16(.|\n)*8"):
        Objective(training, TokenizerModel(TokenizerConfig(), preprocess), Accelerator(cpu=True), seed=0)


@pytest.fixture
def refuse_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TESSERA_VGG16", raising=False)


def test_a_codebook_larger_than_the_data_supports_is_refused_with_both_numbers() -> None:
    quantizer = {"type": "vq", "codebook_size": 2048}
    sizes = {"base_width": 8, "width_multipliers": [1, 2], "norm_groups": 4, "latent_channels": 8}
    config = from_dict(TokenizerConfig, {**sizes, "quantizer": quantizer})
    model = TokenizerModel(config, PREPROCESS)
    require_enough_data(model, 8)
    with pytest.raises(ConfigError, match=r"2,048 codes(.|\n)*1,792: 7 training images with 16 x 16 codes"):
        require_enough_data(model, 7)


def test_a_residual_codebook_is_refused_by_the_name_that_it_has_in_a_recipe() -> None:
    sizes = {"base_width": 8, "width_multipliers": [1, 2], "norm_groups": 4, "latent_channels": 8}
    for shared, enough in ((True, 2), (False, 8)):  # 256 codes of an image at each of 4 depths
        quantizer = {"type": "residual", "depth": 4, "shared": shared, "codebook": {"codebook_size": 2048}}
        model = TokenizerModel(from_dict(TokenizerConfig, {**sizes, "quantizer": quantizer}), PREPROCESS)
        require_enough_data(model, enough)
        with pytest.raises(ConfigError, match=r"tokenizer\.model\.quantizer\.codebook\.codebook_size"):
            require_enough_data(model, enough - 1)
