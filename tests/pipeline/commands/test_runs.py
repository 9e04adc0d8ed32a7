"""estimate on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main


def test_estimate_says_what_the_prior_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The digits recipe's prior: 96 wide, 3 blocks, 192 codes; its parameters counted by hand."""
    path = tmp_path / "costs.json"
    assert main(["estimate", "digits", "--on", "h100", "--json", str(path)]) == 0
    lines = [re.split(r"  +", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    printed = {each[0]: each[-1] for each in lines}
    feed_forward, width = 256, 96
    block = 4 * width**2 + 3 * width * feed_forward + 2 * width + 2 * 24
    n_parameters = 192 * width + width + 3 * block + width + 192 * width
    assert printed["prior parameters"].startswith(f"{n_parameters / 1e6:.2f} million")
    parts = json.loads(path.read_text())["memory"]["prior"]["parts"]
    assert parts["moments"] == 8 * n_parameters and parts["average"] == 4 * n_parameters
    forward = float(printed["prior FLOPs per token"].split()[1].rstrip(","))
    products = 2 * (3 * (4 * width**2 + 3 * width * feed_forward) + 192 * width) / 1e6
    assert products - 0.005 <= forward < 1.2 * products  # attention over 16 places comes on top
    assert "(1,024 tokens a step)" in printed["prior FLOPs in training"]


def test_estimate_refuses_machines_and_numbers_of_images_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "digits", "--on", "h1"]) == 2
    assert "--on" in capsys.readouterr().err
    assert main(["estimate", "digits", "--images", "1"]) == 2
    assert "--images" in capsys.readouterr().err


def test_an_estimate_with_a_budget_is_of_what_a_run_would_choose(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / f"{i}.png")
    words = ["estimate", "folder", "--data.source.path", str(tmp_path), "--budget", "1m"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    chosen = re.search(r"budget 1m:\n +images +(\d+) x (\d+) pixels, (\d+) x (\d+) codes of (\d+)", printed)
    assert chosen is not None and int(chosen[1]) <= 32, printed
    assert re.search(rf"image +{chosen[1]} x {chosen[2]} x 3", printed)
    assert re.search(rf"tokens per image +\d+ \({chosen[3]} x {chosen[4]}\)\n +codebook +{chosen[5]}\n", printed)
    assert main([*words, "--on", "h100"]) == 2
    assert "--budget" in capsys.readouterr().err


def test_estimate_names_parameters_tokens_compression_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "digits", "--on", "cpu-8"]) == 0
    printed = capsys.readouterr().out
    assert "16 (4 x 4)" in printed
    assert "4.0x" in printed and "4.2x (512 to 121)" in printed  # 64 values to 16 codes; 64 bytes to 16 log2(192) bits
    flops = re.search(r"encode ([\d.]+), decode ([\d.]+) billion", printed)
    assert flops is not None and 0.005 < float(flops[1]) < 0.02 and 0.01 < float(flops[2]) < 0.04
    for line in (
        "tokenizer parameters",
        "FLOPs per image",
        "compression, bits",
        "training the prior",
        "peak",
        "codes, at most",
        "total",
    ):
        assert line in printed


def test_estimate_of_a_recipe_with_lpips_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TESSERA_VGG16", raising=False)
    small = ["--data.preprocess", "{height: 16, width: 16, mode: L}", "--tokenizer.training.fit.batch_size", "2"]
    assert main(["estimate", "digits", "--tokenizer.training.perceptual.weight", "1.0", *small]) == 0
    assert "training the tokenizer" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_estimate_counts_two_grids_depth_and_continuous_latents(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["estimate", "digits", "--on", "h100", "--tokenizer.model.quantizer"]
    assert main([*base, "{type: residual, depth: 2, codebook: {codebook_size: 64, width: 4}}"]) == 0
    assert "32 (4 x 4 x 2)" in capsys.readouterr().out
    assert main([*base, "{type: kl, width: 4}"]) == 0
    printed = capsys.readouterr().out
    assert "64 (4 x 4 x 4)" in printed and "prior parameters" in printed
