"""A run whose stage is extended to more steps."""

import shutil
from pathlib import Path

import pytest
from support.tiny_run import TINY

from foundation.errors import CheckpointError
from foundation.storage import durable
from foundation.storage.durable import file_sha256
from foundation.training.log import read_metrics
from pipeline.commands.start import start_run
from pipeline.runs import extend
from pipeline.runs.folder import RunFolder

MORE = {"prior.training.fit.steps": 9}


def again(folder: Path, stage: str = "all", **overrides: object) -> None:
    job = start_run("digits", str(folder), overrides={**TINY, **overrides})
    try:
        getattr(job, stage)()
    finally:
        job.run.release()


def prior_of(folder: Path) -> str:
    return file_sha256(folder / "prior" / "model.safetensors")


def test_the_prior_of_a_finished_run_goes_on_and_what_it_drew_is_drawn_again(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, codes = prior_of(run_copy), file_sha256(run_copy / "codes" / "manifest.json")
    drawn = file_sha256(run_copy / "samples" / "codes.npy")
    again(run_copy, **MORE)
    said = capsys.readouterr().out
    assert (
        "continuing from step 6" in said
        and "extended from 6 to 9 steps at step 6" in said
        and "samples-at-6-steps" in said
    )
    assert prior_of(run_copy) != before and file_sha256(run_copy / "codes" / "manifest.json") == codes
    assert file_sha256(run_copy / "samples-at-6-steps" / "codes.npy") == drawn
    assert file_sha256(run_copy / "samples" / "codes.npy") != drawn and (run_copy / "uses").is_dir()
    assert read_metrics(run_copy / "metrics.jsonl", "prior", "held_out")[-1]["step"] == 9
    assert RunFolder(run_copy).load_recipe().prior.training.fit.steps == 9
    kept = prior_of(run_copy)
    again(run_copy, **MORE)
    assert prior_of(run_copy) == kept, "and is finished"


@pytest.mark.parametrize("moment", ["publish_folder", "remove_folder", "rename_folder", "remove_file"])
def test_a_kill_while_the_new_prior_replaces_the_old_one_is_made_good(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder, new = RunFolder(run_copy), tmp_path / "new"
    shutil.copytree(run_copy / "prior", new)
    (new / "config.json").write_text("{}")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    extend.begin(folder, "prior", 6, 8)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(durable, moment, killed)
        extend.publish(folder, "prior", lambda temporary: durable.copy_files(new, temporary), print)
    assert not extend.is_final(folder, "prior"), "the next start goes on"
    assert any((run_copy / name / "config.json").is_file() for name in ("prior", "prior-new"))
    extend.publish(folder, "prior", lambda temporary: durable.copy_files(new, temporary), print)
    assert (folder.prior / "config.json").read_text() == "{}" and extend.is_final(folder, "prior")
    assert not folder.samples.exists() and (run_copy / "samples-at-6-steps" / "grid.png").is_file()


def test_a_tokenizer_with_codes_is_not_extended(run_copy: Path) -> None:
    with pytest.raises(CheckpointError, match="codes, prior, prior belong") as caught:
        again(run_copy, **{"tokenizer.training.fit.steps": 9})
    assert "--tokenizer.start_from" in str(caught.value)
    assert RunFolder(run_copy).load_recipe().tokenizer.training.fit.steps == 6


def test_a_tokenizer_without_codes_is_extended(run_copy: Path) -> None:
    for name in ("codes", "prior", "checkpoints/prior"):
        shutil.rmtree(run_copy / name)
    before = file_sha256(run_copy / "tokenizer" / "model.safetensors")
    again(run_copy, "train_tokenizer", **{"tokenizer.training.fit.steps": 9})
    assert file_sha256(run_copy / "tokenizer" / "model.safetensors") != before


def test_fewer_steps_than_done_and_lost_checkpoints_are_refused(run_copy: Path) -> None:
    with pytest.raises(CheckpointError, match="less than the run has done"):
        again(run_copy, **{"prior.training.fit.steps": 5})
    shutil.rmtree(run_copy / "checkpoints" / "prior")
    with pytest.raises(CheckpointError, match="checkpoints of these 6 steps are gone"):
        again(run_copy, **MORE)
