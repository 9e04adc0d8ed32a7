"""Samples of runs of every kind of image are scored: without classes, opaque or not, deep, of several shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.multispectral import WHITE, hill
from support.picture_runs import QUICK, save_pictures
from support.several_shapes import make_pictures

from pipeline.cli import main
from pipeline.commands.start import start_run


def run_on(images: Path, folder: Path, preprocess: dict[str, Any]) -> Path:
    overrides = {**QUICK, "data.source": {"type": "folder", "path": str(images)}, "data.preprocess": preprocess}
    job = start_run("digits", str(folder), overrides=overrides)
    job.all()
    job.run.release()
    return folder


def scored(run: Path, *options: str) -> Any:
    arguments = ["evaluate", str(run), "--stage", "samples", "--samples", "24", "--extractor", "small", *options]
    assert main([*arguments, "--device", "cpu"]) == 0
    return json.loads((run / "evaluation" / "samples-small.json").read_text())


def test_a_run_without_classes(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", range(60))
    run = run_on(tmp_path / "images", tmp_path / "run", {"height": 8, "width": 8})
    found = scored(run, "--npz", str(tmp_path / "a.npz"))
    assert "class_accuracy" not in found["figures"] and found["images"]["held_out"] >= 10
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0"] and file["arr_0"].shape == (24, 8, 8, 3)


def test_transparent_images_are_seen_on_grey(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 4), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    run = run_on(tmp_path / "images", tmp_path / "run", {"height": 8, "width": 8, "mode": "RGBA"})
    found = scored(run, "--npz", str(tmp_path / "a.npz"))
    assert any("colours on middle grey" in note for note in found["notes"])
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (24, 8, 8, 3)
    assert (run / "evaluation" / "samples-small.png").is_file()


def test_deep_images_of_four_channels_show_three(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(60):
        np.save(tmp_path / "images" / f"{i:02d}.npy", hill(i, 8))
    preprocess = {"height": 8, "width": 8, "mode": "channels", "channels": 4, "bits": 16, "white_level": WHITE}
    run = run_on(tmp_path / "images", tmp_path / "run", preprocess)
    found = scored(run)
    assert any("the shown channels 0, 1, 2" in note for note in found["notes"])
    assert (run / "evaluation" / "samples-small.png").is_file()


def test_several_shapes_are_scored_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_pictures(tmp_path / "images", 14)
    run = run_on(images, tmp_path / "run", {"height": 8, "width": 12, "shapes": [[12, 8]]})
    found = scored(run)
    assert found["images"]["samples"] == 24 and "class_accuracy" in found["figures"]
    assert "no picture of nearest neighbours: images have several shapes" in capsys.readouterr().out
    assert "nearest_codes" not in found
    wanted = ["evaluate", str(run), "--stage", "samples", "--npz", str(tmp_path / "a.npz"), "--device", "cpu"]
    assert main(wanted) == 2
    assert "one shape" in capsys.readouterr().err
