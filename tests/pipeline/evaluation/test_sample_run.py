"""tessera evaluate: samples of a run, given images, a reference, an .npz file; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.evaluation.class_balance import class_shares
from pipeline.evaluation.config import SampleOptions
from pipeline.evaluation.sampled import SamplePlan
from pipeline.runs.folder import RunFolder
from pipeline.runs.models import open_generator

ON_CPU = ("--device", "cpu")


def evaluate(run: Path, *options: str) -> int:
    return main(["evaluate", str(run), *options, *ON_CPU])


def refused(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> str:
    assert evaluate(run, *options) == 2
    return capsys.readouterr().err


def kept(run: Path, name: str = "samples-small") -> Any:
    return json.loads((run / "evaluation" / f"{name}.json").read_text())


def test_samples_are_scored_beside_real_images(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run_copy, "--stage", "samples", "--samples", "60", "--most-images", "300") == 0
    printed = capsys.readouterr().out
    for said in ("Scores of 60 samples", "95% interval", "real", "60 samples: drawn with", "compared with 300 images"):
        assert said in printed
    assert "PSNR" not in printed and "Likelihood" not in printed
    found = kept(run_copy)
    assert found["images"] == {"samples": 60, "training": 300, "held_out": 60} and found["extractor"] == "small"
    assert next(iter(found["figures"])) == "kernel_distance", "first below 10,000 samples"
    for row in found["figures"].values():
        assert row["samples"]["low"] <= row["samples"]["value"] <= row["samples"]["high"] and row["real"] is not None
    assert {"class_accuracy", "inception_score", "close_codes"} <= set(found["figures"])
    assert found["figures"]["class_accuracy"]["real"]["value"] > 0.7, "the ceiling"
    assert set(found["metrics"]) >= {"kernel_distance_small", "real_kernel_distance_small"}
    assert found["sampling"]["temperature"] == 1.0 and found["seed"] == 0
    pair = found["nearest"]["closest"][0]
    assert pair["training_image"].startswith("digit-") and pair["distance"] >= 0
    with Image.open(run_copy / "evaluation" / "samples-small.png") as picture:
        assert picture.size == (64 + 16 + 4 * 64 + 6, 12 * 64 + 22)


def test_the_same_seed_gives_the_same_figures_and_others_beside_them(run_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    both = ("--samples", "40", "--extractor", "small", "-o", str(out))
    assert evaluate(run_copy, *both) == 0
    first = kept(run_copy)
    assert set(json.loads(out.read_text())) == {"tokenizer", "prior", "samples"}
    assert evaluate(run_copy, "--stage", "samples", "--samples", "40") == 0
    assert kept(run_copy) == first
    assert evaluate(run_copy, "--stage", "samples", "--samples", "40", "--seed", "1") == 0
    assert kept(run_copy)["metrics"] != first["metrics"]


def test_samples_are_written_for_other_evaluators(run_copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    write = ("--stage", "samples", "--samples", "70", "--seed", "3", "--npz", str(path))
    assert evaluate(run_copy, *write) == 0
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (70, 8, 8, 3) and images.dtype == np.uint8 and labels.shape == (70,)
    assert (images[..., :1] == images).all(), "grey in three channels"
    generator = open_generator(str(run_copy), "cpu")
    plan = SamplePlan.of(generator, 70, class_shares(RunFolder(run_copy), generator), 3)
    assert np.array_equal(plan.labels_N, labels)
    alone = generator(class_labels=int(labels[65]), seed=plan.seeds[65], output_type="np").images
    assert np.array_equal((alone[0] * 255).round().astype(np.uint8)[..., 0], images[65, ..., 0])
    before = path.read_bytes()
    assert evaluate(run_copy, *write) == 0 and path.read_bytes() == before, "its own file again"


def test_given_images_are_scored_like_samples(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "samples.npz"
    assert evaluate(run_copy, "--stage", "samples", "--samples", "70", "--npz", str(path)) == 0
    drawn = kept(run_copy)
    assert evaluate(run_copy, "--images", str(path), "--stage", "samples") == 0
    given = kept(run_copy, "samples-small-images")
    for name in ("kernel_distance", "frechet_distance", "class_accuracy", "precision", "coverage"):
        assert given["figures"][name]["samples"] == pytest.approx(drawn["figures"][name]["samples"], rel=1e-5), name
    assert "70 of 70 images read" in capsys.readouterr().out and "nearest_codes" not in given
    folder = tmp_path / "many"
    assert main(["sample", str(run_copy), "--count", "50", "-o", str(folder), *ON_CPU]) == 0
    assert evaluate(run_copy, "--images", str(folder), "--stage", "samples") == 0
    assert kept(run_copy, "samples-small-images")["images"]["samples"] == 50
    assert "class_accuracy" in kept(run_copy, "samples-small-images")["figures"], "classes come from metadata.csv"
    assert evaluate(run_copy, "--images", str(folder), "--samples", "20", "--stage", "samples") == 0
    assert kept(run_copy, "samples-small-images")["images"]["samples"] == 20
    tables = tmp_path / "tables"
    assert main(["sample", str(run_copy), "--count", "50", "--format", "parquet", "-o", str(tables), *ON_CPU]) == 0
    assert evaluate(run_copy, "--images", str(tables), "--stage", "samples") == 0
    assert "class_accuracy" in kept(run_copy, "samples-small-images")["figures"]


def test_another_reference_is_cut_in_two(run_copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    for i in range(80):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (8, 8)).astype(np.uint8)
        Image.fromarray(noise).save(place / f"{i:03d}.png")
    (folder / "a" / "080.png").write_bytes(b"no image")
    assert evaluate(run_copy, "--stage", "samples", "--samples", "30", "--reference", str(folder)) == 0
    found = kept(run_copy, "samples-small-reference")
    assert found["images"]["held_out"] in (29, 30) and found["images"]["training"] in (50, 51)
    assert found["images"]["held_out"] + found["images"]["training"] == 80, "without the unreadable one"
    assert "class_accuracy" not in found["figures"] and "nearest_codes" not in found, "its classes are not the run's"
    assert (
        found["figures"]["frechet_distance"]["samples"]["value"] > found["figures"]["frechet_distance"]["real"]["value"]
    )


def test_what_cannot_act_is_refused(run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--samples", "3"): "10 or more",
        ("--stage", "prior", "--samples", "30"): "no effect on the prior",
        ("--stage", "tokenizer", "--seed", "3"): "no effect on the tokenizer",
        ("--stage", "samples", "--lpips", "random"): "no effect on samples",
        ("--stage", "samples", "--extractor", "none"): "needed to score samples",
        ("--stage", "samples", "--probe"): "--probe",
        ("--samples", "30", "--weights", "x.pth"): "--weights",
        ("--stage", "samples", "--npz", str(tmp_path / "x.npy")): "NAME.npz",
        ("--stage", "samples", "--npz", "x.npz", "--images", "y.npz"): "--images takes others",
        ("--stage", "samples", "--images", str(tmp_path / "none.npz")): "no such file",
        ("--stage", "samples", "--images", str(tmp_path / "none")): "none",
    }
    for options, said in cases.items():
        assert said in refused(capsys, run_copy, *options), options
    mine = tmp_path / "mine.npz"
    np.savez(mine, np.zeros((20, 8, 8, 3), np.uint8))
    assert "not in the record" in refused(capsys, run_copy, "--stage", "samples", "--npz", str(mine))
    many = ("--stage", "samples", "--images", str(mine), "--samples", "30")
    assert "more than there are" in refused(capsys, run_copy, *many)
    assert SampleOptions().n_samples == 2000 and not SampleOptions().is_given


def test_the_probe_says_how_learnable_codes_are(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.evaluation import probe

    monkeypatch.setattr(probe, "STEPS", 40)
    assert evaluate(run_copy, "--stage", "tokenizer", "--extractor", "none", "--probe") == 0
    found = kept(run_copy, "probe")
    assert "40 steps of 64 rows" in capsys.readouterr().out
    assert 0 < found["bits_per_code"] < found["uniform_bits_per_code"]
    assert found["bits_per_image"] == pytest.approx(16 * found["bits_per_code"]) and found["n_images"] == 380
    assert evaluate(run_copy, "--stage", "tokenizer", "--extractor", "none", "--probe") == 0
    again = kept(run_copy, "probe")
    assert again["bits_per_image"] == found["bits_per_image"], "equal codes, equal bits"
