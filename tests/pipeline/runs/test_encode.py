"""The command: parts, status, retries, shares, and several processes of one launch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from support.tiny_export import content

from foundation.codes.manifest import MANIFEST
from pipeline.cli import main
from pipeline.runs.encode import ExportJob
from pipeline.runs.folder import RunFolder
from pipeline.runs.stages import Run


def without_codes(run: Path) -> dict[str, str]:
    """Remove the run's codes; returns what they were."""
    before = content(run / "codes")
    shutil.rmtree(run / "codes")
    return before


def test_parts_one_after_the_other_make_the_run_s_codes(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = without_codes(run_copy)
    assert main(["encode", str(run_copy), "--status"]) == 2
    assert "no export has begun" in capsys.readouterr().err
    assert main(["encode", str(run_copy), "--part", "1/2"]) == 0
    assert "1,797 images planned, 1,797 written, 0 failed" in capsys.readouterr().out
    assert content(run_copy / "codes") == before
    assert main(["encode", str(run_copy), "--status"]) == 0
    assert "finished: 1,797 of 1,797 images (100.0%), 2 of 2 files" in capsys.readouterr().out
    assert main(["encode", str(run_copy), "--part", "2/2"]) == 2
    assert "part" in capsys.readouterr().err


def test_it_joins_while_another_process_has_the_run(run_copy: Path) -> None:
    """Encoding is shared work: the lock that keeps a second training out does not keep helpers out."""
    before = without_codes(run_copy)
    holder = Run(RunFolder(run_copy).load_recipe(), RunFolder(run_copy))
    holder.start()
    assert main(["encode", str(run_copy), "--part", "0/2"]) == 0
    assert content(run_copy / "codes") == before
    holder.release()


def launched(run: Path, results: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    job = Run(RunFolder(run).load_recipe(), RunFolder(run))
    assert job.accelerator.num_processes == 2
    job.join()
    finished = job.encode(ExportJob(max_bad=0.0))
    (results / str(job.accelerator.process_index)).write_text(str(finished))


def test_the_processes_of_a_launch_share_the_work(run_copy: Path, tmp_path: Path) -> None:
    before = without_codes(run_copy)
    debug_launcher(launched, args=(run_copy, tmp_path), num_processes=2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["True", "True"]
    assert content(run_copy / "codes") == before


@pytest.fixture
def spoiled(run_copy: Path, tmp_path: Path) -> Path:
    """A run whose images are files, one of a hundred of them spoiled after the training."""
    images = tmp_path / "images"
    for name in ("a", "b"):
        (images / name).mkdir(parents=True)
        for i in range(50):
            Image.new("L", (8, 8), i).save(images / name / f"{i}.png")
    recipe = (run_copy / "recipe.yaml").read_text().replace("type: digits", f"type: folder\n    path: {images}")
    given = recipe.replace("pretrained: null", f"pretrained: {run_copy / 'tokenizer'}")  # no list of images yet
    (run_copy / "recipe.yaml").write_text(given)
    (run_copy / "images.parquet").unlink()
    shutil.rmtree(run_copy / "codes")
    (images / "b" / "7.png").write_bytes(b"spoiled")
    return images


def test_failures_decide_the_exit_code_and_a_retry_mends_them(
    run_copy: Path, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", str(run_copy), "--max-bad", "0.5%"]) == 2
    error = capsys.readouterr().err
    assert "1 of 100 (1 unreadable)" in error and "b/7.png: unreadable: " in error and "--retry-failed" in error
    assert (run_copy / "codes" / MANIFEST).exists()
    assert main(["encode", str(run_copy), "--max-bad", "1%"]) == 0
    assert "100 images planned, 99 written, 1 failed (1 unreadable)" in capsys.readouterr().out
    assert main(["encode", str(run_copy), "--max-bad=0.001", "--retry-failed"]) == 2
    shutil.copy(spoiled / "b" / "8.png", spoiled / "b" / "7.png")
    assert main(["encode", str(run_copy), "--retry-failed", "--max-bad", "0"]) == 0
    assert "100 images planned, 100 written, 0 failed" in capsys.readouterr().out
    assert main(["encode", str(run_copy), "--max-bad", "most"]) == 2


def test_pushing_happens_when_it_is_finished(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.encoding import card

    pushed = []
    monkeypatch.setattr(card, "push_token_dataset", lambda *a: pushed.append(a) or "address")
    assert main(["encode", str(run_copy), "--push-to-hub", "me/codes"]) == 0
    assert pushed == [(run_copy / "codes", "me/codes")] and "on the hub: address" in capsys.readouterr().out


def test_a_plan_of_other_settings_is_refused(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_copy / "codes" / MANIFEST).unlink()
    plan = run_copy / "codes" / "plan.json"
    before = json.loads(plan.read_bytes())["how"]
    assert before == {"batch_size": 64, "device": "cpu", "precision": "float32"}
    assert main(["encode", str(run_copy), "--encode.images_per_shard", "100"]) == 2
    assert "encode.images_per_shard" in capsys.readouterr().err, "by the recipe of the run"
