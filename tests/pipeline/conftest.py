"""A generator that was never trained, and a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_run import TINY

from foundation.config import from_dict
from foundation.images.config import Preprocess
from pipeline import ImageGenerator
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel


@pytest.fixture(scope="session")
def untrained() -> ImageGenerator:
    """Grey images of 8 x 12 pixels, 4 x 6 codes of 48, classes a, b and c; its codes are far from equally likely."""
    torch.manual_seed(0)
    config = from_dict(TokenizerConfig, TINY["tokenizer.model"])
    tokenizer = TokenizerModel(config, Preprocess(height=8, width=12, mode="L"))
    with torch.no_grad():
        tokenizer.bottleneck.to_code.weight.mul_(40)  # without it all images have the middle code
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=2), tokenizer.spec.with_classes(("a", "b", "c")))
    torch.nn.init.normal_(prior.head.weight, std=0.4)
    generator = ImageGenerator(tokenizer, prior, label_dropout=0.1)
    generator.set_progress_bar_config(disable=True)
    return generator


@pytest.fixture
def pictures() -> torch.Tensor:
    """Three images that ``untrained`` takes, (3, 1, 8, 12)."""
    return torch.rand(3, 1, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def digits_folder(tmp_path: Path) -> Path:
    """Seventeen 8 x 8 pictures, one that is no image, one of another mode and size."""
    folder = tmp_path / "digits"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i:02d}.png")
    Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8)).save(folder / "large.png")
    (folder / "broken.png").write_bytes(b"x")
    return folder
