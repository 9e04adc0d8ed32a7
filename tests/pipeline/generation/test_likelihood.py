"""Likelihood of images: that of their codes, by image, by file and by unit."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from foundation.errors import ConfigError, DataError
from pipeline import ImageGenerator
from pipeline.generation.likelihood import score_files


def test_a_score_is_the_prior_s_and_an_image_does_not_depend_on_its_batch(
    untrained: ImageGenerator, pictures: torch.Tensor
) -> None:
    codes = untrained.tokenizer.encode(pictures)
    labels = torch.tensor([0, 1, 2])
    nats = -untrained.prior.nll(codes.flatten(1), labels).double().sum(1)
    found = untrained.score(pictures, ["a", "b", "c"], unit="nats")
    assert torch.allclose(found, nats, rtol=0, atol=1e-4) and bool((found < 0).all())
    assert torch.equal(untrained.score(codes, [0, 1, 2], unit="nats"), found)
    bits = untrained.score(pictures, [0, 1, 2], batch_size=2)
    assert torch.allclose(bits * math.log(2), nats, rtol=0, atol=1e-4)


def test_files_come_least_likely_first_and_bad_ones_are_named(untrained: ImageGenerator, tmp_path: Path) -> None:
    output = untrained("a", 3, seed=1)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(output.images, paths, strict=True):
        image.save(path)
    (tmp_path / "bad.png").write_bytes(b"no image")
    scored, failed = score_files(untrained, [*paths, tmp_path / "bad.png"], "a", batch_size=2)
    assert [each.bits for each in scored] == sorted((each.bits for each in scored), reverse=True)
    expected = dict(
        zip(map(str, paths), untrained.score([Image.open(path) for path in paths], "a").tolist(), strict=True)
    )
    assert {each.image_id: pytest.approx(-each.bits, abs=1e-3) for each in scored} == expected
    assert len(failed) == 1 and "bad.png" in failed[0]


def test_wrong_calls_are_refused_by_name(untrained: ImageGenerator, pictures: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="unit"):
        untrained.score(pictures, "a", unit="bytes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size"):
        untrained.score(pictures, "a", batch_size=0)
    with pytest.raises(DataError, match="class_labels"):
        untrained.score(pictures, ["a", "b"])
    with pytest.raises(DataError, match="not all codes"):
        untrained.score(untrained.tokenizer.encode(pictures)[:, :2], "a")
