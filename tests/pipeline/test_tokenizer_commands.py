import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main


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
    assert written["metrics"]["n_images"] == 359 and "rfid_small" in written["metrics"]


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


def test_interpolate_writes_a_strip(
    finished_run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "strip.png"
    assert main(["interpolate", str(finished_run), str(picture), str(picture), "--steps", "3", "--out", str(out)]) == 0
    assert Image.open(out).size == (3 * 128 + 2 * 2, 128)
    assert main(["interpolate", str(finished_run), str(picture), "gone.png", "--out", str(out)]) == 2
    assert "gone.png" in capsys.readouterr().err
    assert main(["interpolate", str(finished_run), str(picture), str(picture), "--steps", "1"]) == 2
    for bad in (str(tmp_path), "", "strip", "strip.webpp"):
        assert main(["interpolate", str(finished_run), str(picture), str(picture), "--out", bad]) == 2
        assert "--out" in capsys.readouterr().err
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    assert main(["interpolate", str(finished_run), str(picture), str(text), "--out", str(out)]) == 2
    assert "text.png" in capsys.readouterr().err


def test_reconstruct_keeps_the_size_when_asked(finished_run: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["reconstruct", str(finished_run), str(picture), "--keep-size", "--out", str(out)]) == 0
    scale = 128 // 36
    assert Image.open(out / "0000-wide.png").size == (2 * 36 * scale + 2, 20 * scale)


def test_estimate_names_parameters_tokens_compression_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "digits", "--tokenizer.training.fit.steps", "100"]) == 0
    printed = capsys.readouterr().out
    assert "16 (4 x 4)" in printed and "100 steps" in printed
    assert "4.0x" in printed and "4.2x (512 to 121)" in printed  # 64 values to 16 codes; 64 bytes to 16 log2(192) bits
    flops = re.search(r"encode ([\d.]+), decode ([\d.]+) billion", printed)
    assert flops is not None and 0.005 < float(flops[1]) < 0.02 and 0.01 < float(flops[2]) < 0.04
    for line in ("tokenizer parameters", "FLOPs per image", "compression, bits", "training the prior, here"):
        assert line in printed


def test_estimate_of_a_recipe_with_lpips_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TESSERA_VGG16", raising=False)
    small = ["--data.preprocess", "{height: 16, width: 16, mode: L}", "--tokenizer.training.fit.batch_size", "2"]
    assert main(["estimate", "digits", "--tokenizer.training.perceptual.weight", "1.0", *small]) == 0
    assert "training the tokenizer, here" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_estimate_counts_two_grids_depth_and_continuous_latents(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["estimate", "digits", "--tokenizer.model.quantizer"]
    assert main([*base, "{type: residual, depth: 2, codebook: {codebook_size: 64, width: 4}}"]) == 0
    assert "32 (4 x 4 x 2)" in capsys.readouterr().out
    assert main([*base, "{type: kl, width: 4}"]) == 0
    printed = capsys.readouterr().out
    assert "64 (4 x 4 x 4)" in printed and "prior" not in printed
