"""What the workers of a cluster get of a training command."""

from pathlib import Path

import pytest

from foundation.yaml_text import Text
from pipeline.cli import main
from pipeline.commands.on_workers import _from_root
from pipeline.runs.recipe import load_recipe


def test_paths_hold_in_any_working_directory_and_all_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {
        "data.source.path": Text("pictures"),
        "machine.tokens.packed_folder": Text("../packed"),
        "budget": None,
        "tokenizer.training.fit.steps": Text("12"),
        "name": Text("pictures"),
    }
    known = {name: value for name, value in given.items() if name != "budget"}
    found = _from_root(load_recipe("folder", known), given)
    assert found["data.source.path"] == str(tmp_path / "pictures")
    assert found["machine.tokens.packed_folder"] == str(tmp_path.parent / "packed")
    assert {name: found[name] for name in ("budget", "tokenizer.training.fit.steps", "name")} == {
        "budget": None,
        "tokenizer.training.fit.steps": "12",
        "name": "pictures",
    }


def test_options_of_the_cluster_have_no_effect_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-tokenizer", "digits", "--workers", "2"]) == 2
    assert "--workers: has no effect with --engine local" in capsys.readouterr().err


def test_several_processes_do_not_each_start_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", "digits", "--engine", "ray"]) == 2
    assert "without accelerate launch" in capsys.readouterr().err
