"""evaluate: both parts of a run, what is kept, what the report shows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from foundation.codes.dataset import TokenDataset
from foundation.training.log import read_metrics
from pipeline.cli import main
from pipeline.evaluation.prior import evaluate_run_prior, kept_evaluation
from pipeline.report.report import write_report
from pipeline.runs.folder import RunFolder


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
        "Likelihood of the codes of 380 images (validation), 16 codes each",
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
    assert sum(each["images"] for each in classes) == 380
    assert sum(each["images"] * each["bits_per_code"] for each in classes) / 380 == pytest.approx(
        numbers["bits_per_code"]
    )


def test_evaluate_scores_one_part_on_the_training_codes(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_copy), "--stage", "prior", "--split", "train"]) == 0
    printed = capsys.readouterr().out
    assert "1,417 images (train)" in printed and "have seen these codes" in printed and "PSNR" not in printed
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
    section = page.split(">What the prior finds hard</h2>")[1].split("</section>")[0]
    assert "Bits per code by position" in section and "Bits per code by class" in section
    figures = page.split(">Figures</h2>")[1].split("</section>")[0]
    for name in (
        "counts of left and upper neighbours alone need",
        "code frequencies alone need",
        "bits per value of a pixel",
    ):
        assert name in figures
