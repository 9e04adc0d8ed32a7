"""Likelihood of images: that of their codes, by image, by file and by unit."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.codes.dataset import TokenDataset
from foundation.errors import ConfigError, DataError
from foundation.images.preprocess import to_unit_range
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.generation.likelihood import score_files
from pipeline.runs.folder import RunFolder
from stage2_prior.evaluate import score_prior


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


@pytest.fixture(scope="module")
def generator(finished_run: Path) -> ImageGenerator:
    return ImageGenerator.from_pretrained(finished_run)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_score_is_the_log_likelihood_of_the_codes(generator: ImageGenerator, finished_run: Path) -> None:
    """Of what the tokenizer decodes from held-out codes and encodes again, image by image, by hand."""
    dataset = TokenDataset(finished_run / "codes", "validation")
    images = generator.tokenizer.decode(torch.from_numpy(dataset.grids[:6].astype(np.int64))).clamp(-1, 1)
    tokens = generator.tokenizer.encode(images).flatten(1)
    for labels, numbers in ((None, [10] * 6), ("3", [3] * 6), ([0, "1", 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])):
        nats = -torch.nn.functional.cross_entropy(
            generator.prior(tokens, torch.tensor(numbers)).flatten(0, 1), tokens.flatten(), reduction="none"
        ).view(6, 16)
        found = generator.score(images, labels, unit="nats")  # type: ignore[arg-type]
        assert found.shape == (6,) and found.dtype == torch.float64 and (found <= 0).all()
        assert found.numpy() == pytest.approx(nats.double().sum(1).detach().numpy(), rel=1e-5)
        bits = generator.score(images, labels)  # type: ignore[arg-type]
        assert torch.allclose(bits * math.log(2), found)
        for codes in (tokens, tokens.view(6, 4, 4), tokens.numpy().astype(np.uint16)):
            assert torch.equal(generator.score(codes, labels), bits)  # type: ignore[arg-type]


def test_scores_agree_with_the_evaluation_of_the_same_images(generator: ImageGenerator, finished_run: Path) -> None:
    from foundation.images.image_set import open_image_sets

    _, held_out = open_image_sets(RunFolder(finished_run).load_recipe().data)
    images = held_out.images(np.arange(len(held_out)))
    assert held_out.labels is not None
    bits = -generator.score(images, held_out.labels.tolist())
    scores = score_prior(generator.prior, TokenDataset(finished_run / "codes", "validation"))
    assert float(bits.mean()) == pytest.approx(scores.bits_per_image, rel=1e-4)


def test_pictures_and_their_tensors_score_alike(generator: ImageGenerator) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    pictures = [Image.fromarray(each[..., 0]) for each in pixels]
    together = generator.score(to_unit_range(pixels), 4)
    assert torch.allclose(generator.score(pictures, 4), together)
    assert torch.allclose(generator.score(pictures[1], 4), together[1:2], rtol=1e-5)


def test_tensors_of_any_floating_type_are_scored(generator: ImageGenerator) -> None:
    images = to_unit_range(np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), np.uint8))
    assert torch.equal(generator.score(images.double(), 4), generator.score(images, 4))
    assert torch.equal(generator.score(images.bfloat16(), 4), generator.score(images.bfloat16().float(), 4))


def test_a_prior_without_a_null_class_scores_with_classes_only(
    generator: ImageGenerator, run_copy: Path, digits_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sure = ImageGenerator(generator.tokenizer, generator.prior, label_dropout=0)
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ConfigError, match="class_labels: is needed"):
        sure.score(images)
    assert torch.equal(sure.score(images, [1, 2]), generator.score(images, [1, 2]))
    index = run_copy / "model_index.json"
    values = json.loads(index.read_text())
    values["sampling"]["guidance_scale"] = 1.0
    index.write_text(json.dumps({**values, "label_dropout": 0}))
    assert "--class-label: is needed" in refused(capsys, "score", str(run_copy), str(digits_folder))


@pytest.mark.parametrize(
    ("images", "labels", "fragment"),
    [
        (torch.zeros(2, 1, 8, 12), None, r"\(2, 1, 8, 12\)"),
        (torch.zeros(0, 1, 8, 8), None, "images"),
        (torch.full((1, 1, 8, 8), 255.0), None, r"\[-1, 1\]"),
        (torch.full((1, 1, 8, 8), math.nan), None, r"\[-1, 1\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), None, "uint8(.|\n)*floats from -1 to 1"),
        (torch.zeros(2, 2, 4, dtype=torch.int64), None, "all codes(.|\n)*8(.|\n)*16"),
        (torch.full((2, 4, 4), 192), None, "192"),
        ([], None, "images"),
        (["a.png"], None, "str"),
        (torch.zeros(3, 1, 8, 8), [1, 2], "1 or 3"),
        (torch.zeros(3, 1, 8, 8), "ten", "no such class"),
    ],
)
def test_images_and_classes_that_cannot_be_scored_are_refused(
    generator: ImageGenerator, images: object, labels: object, fragment: str
) -> None:
    with pytest.raises(DataError, match=fragment):
        generator.score(images, labels)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'bits'"):
        generator.score(torch.zeros(1, 1, 8, 8), unit="bit")  # type: ignore[arg-type]
