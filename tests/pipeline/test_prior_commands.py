"""Likelihood as users meet it: evaluate, score, the report."""

import csv
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
from foundation.training.log import read_metrics
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.evaluation.prior import evaluate_run_prior, kept_evaluation
from pipeline.report.report import write_report
from pipeline.runs.folder import RunFolder
from stage2_prior.evaluate import score_prior


@pytest.fixture(scope="module")
def generator(finished_run: Path) -> ImageGenerator:
    return ImageGenerator.from_pretrained(finished_run)


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


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_evaluate_scores_both_parts_and_writes_them(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(run_copy), "--extractor", "none", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    for fragment in (
        "PSNR",
        "Likelihood of the codes of 359 images (validation), 16 codes each",
        "neighbours, counted",
        "per pixel dimension",
        "hardest classes",
    ):
        assert fragment in printed
    found = json.loads(out.read_text())
    assert set(found) == {"tokenizer", "prior"} and found["tokenizer"]["metrics"]["psnr"] > 0
    numbers = found["prior"]["metrics"]
    assert numbers["bits_per_image"] == pytest.approx(16 * numbers["bits_per_code"])
    assert numbers["bits_per_value"] == pytest.approx(numbers["bits_per_image"] / 64)
    assert 0 < numbers["count_neighbour_bits_per_code"] <= numbers["count_unigram_bits_per_code"] + 0.05
    assert numbers["unigram_bits_per_code"] < numbers["count_unigram_bits_per_code"] < math.log2(48)
    last = read_metrics(run_copy / "metrics.jsonl", "prior", "held_out")[-1]
    assert numbers["bits_per_code"] == pytest.approx(last["bits_per_code"], rel=1e-5)
    (place,) = found["prior"]["bits_by_place"]
    assert np.mean(place["bits"]) == pytest.approx(numbers["bits_per_code"]) and np.shape(place["bits"]) == (4, 4)
    classes = found["prior"]["bits_by_class"]
    assert [each["class"] for each in classes] == list("0123456789")
    assert sum(each["images"] for each in classes) == 359
    assert sum(each["images"] * each["bits_per_code"] for each in classes) / 359 == pytest.approx(
        numbers["bits_per_code"]
    )


def test_evaluate_scores_one_part_on_the_training_codes(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_copy), "--stage", "prior", "--split", "train"]) == 0
    printed = capsys.readouterr().out
    assert "1,438 images (train)" in printed and "have seen these codes" in printed and "PSNR" not in printed
    assert (run_copy / "evaluation" / "prior-train.json").is_file()


def test_evaluate_says_what_it_cannot_do(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    assert '"prior"' in refused(capsys, "evaluate", str(run_copy), "--stage", "priro")
    shutil.rmtree(run_copy / "prior")
    assert "train-prior" in refused(capsys, "evaluate", str(run_copy), "--stage", "prior")
    assert main(["evaluate", str(run_copy), "--extractor", "none"]) == 0
    assert "Likelihood" not in capsys.readouterr().out


def test_an_evaluation_is_kept_until_the_prior_or_the_codes_change(run_copy: Path) -> None:
    folder = RunFolder(run_copy)
    path = run_copy / "evaluation" / "prior-validation.json"
    evaluate_run_prior(folder, "validation", "cpu")
    kept = json.loads(path.read_text())
    marked = {**kept, "metrics": {**kept["metrics"], "bits_per_code": -1.0}}
    path.write_text(json.dumps(marked))
    assert kept_evaluation(folder, "validation", "cpu")["metrics"]["bits_per_code"] == -1.0
    path.write_text(json.dumps({**marked, "of": "another prior"}))
    assert kept_evaluation(folder, "validation", "cpu")["metrics"] == kept["metrics"]
    path.write_text("{")
    assert kept_evaluation(folder, "validation", "cpu")["metrics"] == kept["metrics"]
    assert json.loads(path.read_text())["of"] == kept["of"]


def test_codes_are_read_for_report_and_evaluation_as_the_recipe_says(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (run_copy / "recipe.yaml").read_text()
    assert "form: auto" in recipe
    (run_copy / "recipe.yaml").write_text(recipe.replace("form: auto", "form: streamed"))
    seen, opened = [], TokenDataset.__init__

    def watched(self: TokenDataset, folder: object, split: str = "train", access: object = None) -> None:
        seen.append(getattr(access, "form", None))
        opened(self, folder, split, access)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenDataset, "__init__", watched)
    evaluate_run_prior(RunFolder(run_copy), "validation", "cpu")
    write_report(RunFolder(run_copy))
    assert len(seen) > 3 and set(seen) == {"streamed"}


def test_the_report_shows_bits_by_place_and_by_class(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text()
    section = page.split("<h2>What the prior finds hard</h2>")[1].split("</section>")[0]
    assert section.count("data:image/png;base64,") == 2
    assert "at each position" in section and "of each class" in section
    figures = page.split("<h2>Figures</h2>")[1].split("</section>")[0]
    for name in (
        "counts of left and upper neighbours need",
        "frequencies of training codes need",
        "bits per pixel dimension",
    ):
        assert name in figures


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
    assert "class_labels" in refused(capsys, "score", str(run_copy), str(digits_folder))


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


def test_score_lists_the_least_likely_first(
    finished_run: Path,
    generator: ImageGenerator,
    digits_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for suffix in ("csv", "json"):
        out = tmp_path / f"scores.{suffix}"
        assert main(["score", str(finished_run), str(digits_folder), "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        assert "unusable" in printed and "broken.png" in printed and "over 17 images" in printed
    with (tmp_path / "scores.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    listed = json.loads((tmp_path / "scores.json").read_text())
    assert [row["image_id"] for row in rows] == [each["image_id"] for each in listed["images"]]
    assert len(rows) == 17 and len(listed["unusable"]) == 1 and "broken.png" in listed["unusable"][0]
    bits = [float(row["bits"]) for row in rows]
    assert bits == sorted(bits, reverse=True) and len(set(bits)) > 10
    first = Image.open(rows[0]["image_id"])
    assert bits[0] == pytest.approx(-float(generator.score(first)[0]), rel=1e-5)
    assert float(rows[0]["bits_per_code"]) == pytest.approx(bits[0] / 16)


def test_score_takes_files_as_the_shell_expands_them_and_a_class(
    finished_run: Path, digits_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(digits_folder / name) for name in ("03.png", "01.png")]
    assert main(["score", str(finished_run), *files, "--class-label", "7"]) == 0
    printed = capsys.readouterr().out
    assert "over 2 images" in printed and "03.png" in printed and "01.png" in printed
    assert main(["score", str(finished_run), files[0]]) == 0


def test_score_refuses_what_it_cannot_use(
    finished_run: Path, digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(finished_run)
    assert "IMAGES" in refused(capsys, "score", str(digits_folder))
    assert ".csv or .json" in refused(capsys, "score", run, str(digits_folder), "--out", str(tmp_path / "x.txt"))
    assert "no such class" in refused(capsys, "score", run, str(digits_folder), "--class-label", "ten")
    assert "none of the images" in refused(capsys, "score", run, str(digits_folder / "broken.png"))
    assert "no such file" in refused(capsys, "score", run, "nowhere.png")


def test_estimate_says_what_the_prior_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """The digits recipe's prior: 96 wide, 3 blocks, 192 codes, 10 classes; its parameters counted by hand."""
    assert main(["estimate", "digits", "--tokenizer.training.fit.steps", "10"]) == 0
    printed = {line[:30].strip(): line[30:].strip() for line in capsys.readouterr().out.splitlines()}
    feed_forward, width = 256, 96
    block = 4 * width**2 + 3 * width * feed_forward + 2 * width + 2 * 24
    n_parameters = 192 * width + 11 * width + 3 * block + width + 192 * width
    assert printed["prior parameters"].startswith(f"{n_parameters / 1e6:.2f} million")
    assert f"{4 * n_parameters / 1e6:.1f} MB on disk; {20 * n_parameters / 1e6:.1f} MB" in printed["prior bytes"]
    forward = float(printed["prior FLOPs per token"].split()[1].rstrip(","))
    products = 2 * (3 * (4 * width**2 + 3 * width * feed_forward) + 192 * width) / 1e6
    assert products - 0.005 <= forward < 1.2 * products  # attention over 16 places comes on top
    assert "(1,024 tokens a step)" in printed["prior FLOPs in training"]
