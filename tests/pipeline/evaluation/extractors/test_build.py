import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.config import from_dict, to_dict
from foundation.errors import ConfigError, DataError
from pipeline.evaluation.extractors import InceptionConfig, SmallConfig, build_extractor

ROOT = Path(__file__).parents[4]


def test_small_gives_the_same_features_in_another_process() -> None:
    code = (
        "import torch;"
        "from pipeline.evaluation.extractors import SmallConfig, build_extractor;"
        "images = torch.linspace(-1, 1, 2 * 3 * 16 * 12).view(2, 3, 16, 12);"
        "print(build_extractor(SmallConfig())(images).sum(0).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 12).view(2, 3, 16, 12)
    here = build_extractor(SmallConfig())(images)
    assert here.shape == (2, 64) and here.dtype == torch.float32
    np.testing.assert_allclose(here.sum(0).numpy(), json.loads(done.stdout), rtol=1e-6)
    assert not torch.allclose(here, build_extractor(SmallConfig(seed=1))(images))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 13), (64, 48)])
def test_small_takes_any_size_and_grey_as_its_rgb_copy(size: tuple[int, int]) -> None:
    extractor = build_extractor(SmallConfig())
    grey = torch.rand(3, 1, *size) * 2 - 1
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))
    assert torch.isfinite(extractor(grey)).all()
    assert extractor(grey[:0]).shape == (0, 64)


def test_small_says_that_it_compares_with_nothing_published() -> None:
    extractor = build_extractor(SmallConfig())
    assert extractor.caveat is not None
    assert "random" in str(extractor.caveat)


def test_images_are_seen_as_eight_bit() -> None:
    extractor = build_extractor(SmallConfig())
    levels = torch.randint(0, 256, (2, 3, 8, 8))
    exact = levels / 127.5 - 1
    nearly = exact + 0.4 / 127.5 * (torch.rand_like(exact) * 2 - 1)
    assert torch.equal(extractor(exact), extractor(nearly))
    assert torch.equal(extractor(exact * 100), extractor((exact * 100).clamp(-1, 1)))


def test_bad_images_are_refused() -> None:
    extractor = build_extractor(SmallConfig())
    with pytest.raises(DataError, match="NaN or infinity"):
        extractor(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(DataError, match="batch of images"):
        extractor(torch.zeros(1, 4, 8, 8))
    with pytest.raises(DataError, match="batch of images"):
        extractor(torch.zeros(3, 8, 8))


def test_configurations_are_choices_with_checked_fields() -> None:
    assert to_dict(InceptionConfig())["type"] == "inception"
    assert from_dict(SmallConfig, {"type": "small", "seed": 3}) == SmallConfig(seed=3)
    with pytest.raises(ConfigError, match="seed"):
        SmallConfig(seed=-1)
