"""VGG16's weights: where they are looked for, and what happens when they are not there."""

import hashlib
import io
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from foundation.errors import CheckpointError, ConfigError
from stage1_tokenizer.losses import vgg16
from stage1_tokenizer.losses.vgg16 import FILE_NAME, VGG16, load_vgg16, locate_vgg16

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no environment, no network."""
    monkeypatch.delenv("TESSERA_VGG16", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """What a torchvision file holds, with a stub of a classifier."""
    return {**load_vgg16("random").state_dict(), "classifier.0.weight": torch.zeros(4, 4)}


def test_the_keys_and_shapes_are_torchvision_s() -> None:
    vgg = load_vgg16("random")
    names = {f"features.{i}.{kind}" for i in CONVOLUTIONS for kind in ("weight", "bias")}
    assert set(vgg.state_dict()) == names
    outputs = vgg(torch.randn(2, 3, 32, 48))
    assert [tuple(each.shape) for each in outputs] == [
        (2, width, 32 // 2**i, 48 // 2**i) for i, width in enumerate(VGG16.widths)
    ]
    assert all(each.min() >= 0 and each.max() > 0 for each in outputs), "each comes after a ReLU"
    assert not any(each.requires_grad for each in vgg.parameters())


def test_random_weights_are_always_the_same_and_leave_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = load_vgg16("random")
    assert torch.equal(torch.rand(1), expected)
    other = load_vgg16("random").state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_gives_exactly_its_weights(tmp_path: Path, tensors: dict[str, torch.Tensor], suffix: str) -> None:
    path, changed = tmp_path / f"weights{suffix}", {name: value + 1 for name, value in tensors.items()}
    save_file(changed, path) if suffix == ".safetensors" else torch.save(changed, path)
    loaded = load_vgg16(str(path)).state_dict()
    assert all(torch.equal(value, changed[name]) for name, value in loaded.items())


def test_a_missing_file_names_three_remedies(hub: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_vgg16("")
    message = str(caught.value)
    assert "perceptual.vgg_weights" in message and "TESSERA_VGG16" in message
    assert str(hub / FILE_NAME) in message
    assert "perceptual.weight 0" in message
    assert "HF_HUB_OFFLINE" in message, "why it was not downloaded"


def test_a_name_that_does_not_exist_is_an_error_even_if_another_file_would_do(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.mkdir(parents=True)
    (hub / FILE_NAME).write_bytes(b"whatever")
    assert locate_vgg16("") == hub / FILE_NAME
    with pytest.raises(ConfigError, match=r"vgg_weights names .*absent\.pth"):
        locate_vgg16("absent.pth")
    monkeypatch.setenv("TESSERA_VGG16", "gone.pth")
    with pytest.raises(ConfigError, match=r"TESSERA_VGG16 names .*gone\.pth"):
        locate_vgg16("")


def test_the_order_is_name_then_environment_then_cache(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.mkdir(parents=True)
    for path in (hub / FILE_NAME, tmp_path / "named.pth", tmp_path / "environment.pth"):
        path.write_bytes(b"whatever")
    monkeypatch.setenv("TESSERA_VGG16", str(tmp_path / "environment.pth"))
    assert locate_vgg16(str(tmp_path / "named.pth")) == tmp_path / "named.pth"
    assert locate_vgg16("") == tmp_path / "environment.pth"
    monkeypatch.delenv("TESSERA_VGG16")
    assert locate_vgg16("") == hub / FILE_NAME
    assert locate_vgg16("random") is None


def test_the_well_known_file_is_checked_against_its_name(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, tmp_path / FILE_NAME)
    with pytest.raises(CheckpointError, match="SHA-256 397923af"):
        load_vgg16(str(tmp_path / FILE_NAME))


def test_files_that_are_no_vgg16_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({**tensors, "features.0.bias": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(VGG16(), tmp_path / "module.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "nan.pth").read_bytes()[:1000])
    (tmp_path / "torn.safetensors").write_bytes(b"\0" * 20)
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("other.pth", "nan.pth", "list.pth", "module.pth", "torn.pth", "torn.safetensors", "empty.pth"):
        with pytest.raises(CheckpointError, match=name):
            load_vgg16(str(tmp_path / name))


def test_a_failing_download_names_its_reason_and_leaves_nothing(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(ConfigError, match=r"(?s)no route to host.*perceptual\.weight 0"):
        locate_vgg16("")
    assert not [each for each in hub.iterdir() if each.suffix != ".lock"]


def test_a_download_is_checked_before_it_is_published(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(vgg16, "_N_BYTES", 11)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"the weights"))
    with pytest.raises(CheckpointError, match="arrived damaged"):
        locate_vgg16("")
    assert not (hub / FILE_NAME).exists()
    monkeypatch.setattr(vgg16, "SHA256_START", hashlib.sha256(b"the weights").hexdigest()[:8])
    assert locate_vgg16("") == hub / FILE_NAME
    assert (hub / FILE_NAME).read_bytes() == b"the weights"
