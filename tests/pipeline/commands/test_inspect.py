"""evaluate, score and reconstruct on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import ImageGenerator
from pipeline.cli import main


@pytest.fixture(scope="module")
def generator(finished_run: Path) -> ImageGenerator:
    return ImageGenerator.from_pretrained(finished_run)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


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


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 37, 3), np.uint8)).save(path)
    return path


def test_evaluate_prints_a_table_that_says_what_does_not_compare(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_copy)]) == 0
    printed = capsys.readouterr().out
    assert "PSNR" in printed and "SSIM" in printed and "rKID" in printed and "NOT COMPARABLE" in printed
    written = json.loads((run_copy / "evaluation" / "tokenizer-validation-small.json").read_text())
    assert written["metrics"]["n_images"] == 380 and "rfid_small" in written["metrics"]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--split", "test"], ["--split", '"test"', "validation"]),
        (["--extractor", "inceptio"], ["--extractor", "inceptio", '"inception"']),
        (["--extractor", "small", "--weights", "x.pth"], ["--weights", "x.pth", "leave it out"]),
        (["--extractor", "none", "--weights", "x.pth"], ["--weights", "x.pth", "leave it out"]),
        (["--extractor", "dinov2", "--weights", "/nowhere"], ["/nowhere", "--weights FOLDER"]),
        (["--lpips", "/nowhere.pth"], ["/nowhere.pth"]),
    ],
)
def test_evaluate_refuses_what_it_does_not_know(
    finished_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fragments: list[str]
) -> None:
    assert main(["evaluate", str(finished_run), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(fragment in error for fragment in fragments)


def test_reconstruct_keeps_the_size_when_asked(finished_run: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["reconstruct", str(finished_run), str(picture), "--keep-size", "--out", str(out)]) == 0
    scale = 128 // 36
    assert Image.open(out / "0000-wide.png").size == (2 * 36 * scale + 2, 20 * scale)
