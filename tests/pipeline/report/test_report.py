"""The report of a run: everything that the run has, while it trains and when it is finished."""

import json
import re
import shutil
from pathlib import Path

import pytest

from foundation.errors import CheckpointError
from pipeline.cli import main
from pipeline.report.live import LiveReport
from pipeline.report.report import write_progress, write_report
from pipeline.report.summary import RunSummary, count_parameters
from pipeline.runs.folder import RunFolder

FINISHED = ("New images", "Figures", "Reconstructions", "Edits", "Training", "What the prior finds hard")
FINISHED += ("Use of the codebook", "Data", "Time", "Recipe")


def titles(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [part.split("</h2>")[0].split(">", 1)[1] for part in text.split("<h2 id=")[1:]]


def test_a_finished_run_has_every_section_and_the_page_is_small(finished_run: Path) -> None:
    page = finished_run / "report.html"
    assert set(FINISHED) <= set(titles(page)) and page.stat().st_size < 5_000_000
    text = page.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in text and f"tessera sample {finished_run}" in text
    assert "counts of left and upper neighbours alone need" in text and "A prior of " in text
    assert not re.search(r"""(?:src|href)=["']?(?!["'#]|data:)""", text), "one file, without a network"


def test_a_run_that_trains_has_a_report_that_loads_itself_again(run_copy: Path) -> None:
    for part in ("samples", "prior"):
        shutil.rmtree(run_copy / part)
    write_progress(RunFolder(run_copy))
    page = run_copy / "report.html"
    assert titles(page) == ["Figures", "Training", "Time", "Recipe"]
    assert 'http-equiv="refresh"' in page.read_text() and "Training the prior: step" in page.read_text()


def test_a_folder_of_samples_that_lacks_files_is_refused(run_copy: Path) -> None:
    (run_copy / "samples" / "samples.json").unlink()
    with pytest.raises(CheckpointError, match=r"samples: the samples are missing or incomplete(.|\n)*samples again"):
        write_report(RunFolder(run_copy))


def test_a_file_of_the_user_is_not_replaced(run_copy: Path) -> None:
    (run_copy / "report.html").write_text("mine")
    for write in (write_report, write_progress):
        with pytest.raises(CheckpointError, match="is not a report of a run"):
            write(RunFolder(run_copy))
    assert (run_copy / "report.html").read_text() == "mine"


def test_warnings_stand_in_the_report(run_copy: Path) -> None:
    row = {"stage": "prior", "kind": "warning", "step": 3, "text": "the loss rises; lower the learning rate"}
    with (run_copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    write_report(RunFolder(run_copy))
    assert "prior, step 3: the loss rises; lower the learning rate" in (run_copy / "report.html").read_text()


def test_live_reports_take_little_of_the_time_and_fail_once(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, live = RunFolder(run_copy), LiveReport()
    (run_copy / "report.html").unlink()
    live(folder)
    assert (run_copy / "report.html").is_file()
    (run_copy / "report.html").unlink()
    live(folder)  # at once again: it would take more than its share
    assert not (run_copy / "report.html").exists()
    (run_copy / "report.html").write_text("mine")
    live = LiveReport()
    live(folder)
    live(folder)
    assert capsys.readouterr().err.count("no report while it trains") == 1
    assert (run_copy / "report.html").read_text() == "mine"


def test_a_summary_says_how_far_a_run_is(run_copy: Path) -> None:
    folder = RunFolder(run_copy)
    assert RunSummary(folder).state == "finished"
    shutil.rmtree(run_copy / "samples")
    assert RunSummary(folder).state == "the prior is trained, nothing is sampled yet"
    shutil.rmtree(run_copy / "prior")
    assert RunSummary(folder).state.startswith("training the prior: step ")
    (run_copy / "metrics.jsonl").unlink()
    assert RunSummary(folder).state == "the codes are there, the prior comes next"
    (run_copy / "codes" / "manifest.json").unlink()
    assert RunSummary(folder).state == "the tokenizer is trained, encoding comes next"
    shutil.rmtree(run_copy / "tokenizer")
    assert RunSummary(folder).state == "before the first step"


def test_the_time_of_a_stage_that_trains_is_that_of_its_log(run_copy: Path) -> None:
    folder = RunFolder(run_copy)
    times = json.loads(folder.times.read_text())
    folder.times.write_text(json.dumps({**times, "taken": {"start": 2.0}}))
    assert RunSummary(folder).seconds == 2.0, "a finished run's times are all there"
    shutil.rmtree(run_copy / "samples")
    logged = {stage: RunSummary(folder).rows(stage, "train")[-1]["seconds"] for stage in ("tokenizer", "prior")}
    assert RunSummary(folder).times["taken"] == {"start": 2.0, **logged}
    assert RunSummary(folder).seconds == 2.0 + sum(logged.values())
    again = {"stage": "prior", "kind": "train", "step": 10**6, "seconds": 0.01}  # of a process that continued
    with folder.metrics.open("a") as file:
        file.write(json.dumps(again) + "\n")
    assert RunSummary(folder).times["taken"]["prior"] == pytest.approx(logged["prior"] + 0.01)


def test_parameters_are_counted_from_the_files(finished_run: Path) -> None:
    from stage2_prior.prior import PriorModel

    counted = count_parameters(finished_run / "prior" / "model.safetensors")
    assert counted == sum(each.numel() for each in PriorModel.load(finished_run / "prior").parameters())


def test_show_says_the_same_to_people_and_to_programs(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(finished_run)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("digits: finished") and "bits per code" in text
    assert main(["show", str(finished_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "finished" and found["recipe"]["name"] == "digits"
    assert f"{found['figures']['tokenizer.psnr']:.2f} dB" in text
    assert main(["show", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
