"""Scores of reconstructions of images of any channels."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from support.multispectral import hill
from support.small_tokenizer import CONFIG, training

from foundation.errors import ContractError
from foundation.images.array_image import ArrayImage
from foundation.images.config import Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.preprocess import to_unit_range
from foundation.images.preview import Stretch, find_stretch
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.canary import check_canary, check_canary_quickly, save_canary
from stage1_tokenizer.evaluate import mean_colour_psnr, score_tokenizer, scores_of
from stage1_tokenizer.image_metrics import channel_psnr, psnr
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask

RGBN = Preprocess(height=16, width=16, mode="channels", channels=4, bits=16, white_level=10_000)


class Hills:
    """A source of images of four channels and 16 bits."""

    class_names = ()
    labels = None

    def __init__(self) -> None:
        self.ids = [f"hill-{i:02d}" for i in range(32)]

    def read(self, index: int) -> ArrayImage:
        return ArrayImage(hill(index))


@pytest.fixture(scope="module")
def trained() -> tuple[TokenizerTask, ImageSet]:
    torch.manual_seed(0)
    images, settings = ImageSet(Hills(), RGBN), training(60)
    accelerator = Accelerator(cpu=True)
    model = TokenizerModel(CONFIG, RGBN)
    task = TokenizerTask(model, settings, Objective(settings, model, accelerator, seed=0), images, accelerator, seed=0)
    for step in range(60):
        indices = np.arange(step * 16, step * 16 + 16) % len(images)
        task.train_step(images.batch(indices, np.zeros(16, int)), step)
    return task, images


def test_four_deep_channels_are_learned_and_scored_one_by_one(trained: tuple[TokenizerTask, ImageSet]) -> None:
    task, images = trained
    assert images.pixels(np.arange(2)).dtype == np.uint16
    torch.manual_seed(0)
    before, after = (score_tokenizer(each, images).means for each in (TokenizerModel(CONFIG, RGBN), task.exported()))
    assert after["psnr"] > before["psnr"] + 3
    assert {f"psnr_{i}" for i in range(4)} <= set(after) and "psnr_4" not in after
    assert min(after[f"psnr_{i}"] for i in range(4)) - 1 < after["psnr"] < max(after[f"psnr_{i}"] for i in range(4)) + 1


def test_a_tokenizer_of_deep_channels_is_saved_with_its_stretch_and_canary(
    trained: tuple[TokenizerTask, ImageSet], tmp_path: Path
) -> None:
    task, images = trained
    model, pixels = task.exported(), images.pixels(np.arange(16))
    fingerprint = model.fingerprint
    model.stretch = find_stretch(pixels // 8, RGBN)
    assert model.stretch != Stretch() and model.fingerprint == fingerprint
    model.save(tmp_path)
    save_canary(model, pixels, tmp_path)
    loaded = TokenizerModel.load(tmp_path)
    assert loaded.preprocess == RGBN and loaded.stretch == model.stretch
    check_canary(loaded, tmp_path)
    check_canary_quickly(loaded, tmp_path, seconds=5)
    hub = Tokenizer.from_pretrained(tmp_path)
    hub.save_pretrained(tmp_path / "again")
    assert TokenizerModel.load(tmp_path / "again").stretch == model.stretch
    assert torch.equal(hub.encode(to_unit_range(pixels)), model.encode(to_unit_range(pixels)))
    loaded.preprocess = dataclasses.replace(RGBN, resize="nearest")
    with pytest.raises(ContractError, match="other pixels"):
        check_canary(loaded, tmp_path)


def test_psnr_of_channels_is_psnr_of_each_alone() -> None:
    one, other = (torch.rand(3, 5, 8, 8, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    each = channel_psnr(one, other)
    assert each.shape == (3, 5)
    assert torch.allclose(each[:, 2], psnr(one[:, 2:3], other[:, 2:3]))


def test_the_colour_of_transparent_pixels_has_no_part_in_the_scores() -> None:
    images = torch.rand(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[:, 3] = 1.0
    images[:, 3, :8] = -1.0
    other = images.clone()
    other[:, :3, :8] = -images[:, :3, :8]
    scores = scores_of(images, other, Preprocess(mode="RGBA"))
    assert (scores["psnr"] == 100).all() and (scores["psnr_alpha"] == 100).all()
    other[:, 3, :8] = 1.0
    scores = scores_of(images, other, Preprocess(mode="RGBA"))
    assert (scores["psnr_colour"] < 20).all() and (scores["psnr_alpha"] < 10).all()


class Given:
    """A source of given pixels, (N, 16, 16, 3) uint8."""

    class_names = ()
    labels = None

    def __init__(self, pixels_NYXC: np.ndarray) -> None:
        self._pixels, self.ids = pixels_NYXC, [str(i) for i in range(len(pixels_NYXC))]

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])


def test_the_psnr_of_mean_colours_is_that_of_flat_images() -> None:
    rng, plain = np.random.default_rng(0), Preprocess(height=16, width=16)
    flat = np.repeat(rng.integers(0, 256, (3, 1, 1, 3), np.uint8), 16, 1).repeat(16, 2)
    assert mean_colour_psnr(ImageSet(Given(flat), plain)) > 99
    halves = np.concatenate([np.zeros((2, 16, 8, 3), np.uint8), np.full((2, 16, 8, 3), 255, np.uint8)], 2)
    assert mean_colour_psnr(ImageSet(Given(halves), plain)) == pytest.approx(10 * np.log10(4), abs=1e-3)
