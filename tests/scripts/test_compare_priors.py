"""The table of priors, made of a tiny run in a few steps."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.tiny_run import ROOT


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_priors", ROOT / "scripts" / "compare_priors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    return int(script.main())


def test_every_row_is_another_prior_trained_once_on_the_same_codes(
    script: ModuleType,
    run_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, rows = tmp_path / "compare", tmp_path / "rows.json"
    before = {path: path.stat().st_mtime_ns for path in (run_copy / "codes").rglob("*.parquet")}
    assert run(script, monkeypatch, run_copy, "--steps", 4, "--out", out, "--json", rows) == 0
    found = json.loads(rows.read_text())
    assert [each["prior"] for each in found["rows"]] == list(script.PRIORS)
    assert len({each["bits per code"] for each in found["rows"]}) == len(script.PRIORS), "no two rows are one prior"
    assert all(each["steps"] == 4 for each in found["rows"]) and len(found["counted"]) == 2
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in (*script.PRIORS, "code frequencies"))
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("prior/model.safetensors")}
    assert len(weights) == len(script.PRIORS)
    assert run(script, monkeypatch, run_copy, "--steps", 4, "--out", out) == 0
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(script, monkeypatch, run_copy, "--steps", 5, "--out", out) == 2
    assert "prior.training.fit.steps" in capsys.readouterr().err


def test_minutes_become_one_number_of_steps_for_all(
    script: ModuleType,
    run_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, rows = tmp_path / "compare", tmp_path / "rows.json"
    arguments = (run_copy, "--minutes", 0.0005, "--out", out, "--json", rows, "--only")
    assert run(script, monkeypatch, *arguments, "2d-rope", "no-dropout") == 0
    steps = json.loads((out / "budget.json").read_text())["steps"]
    assert [each["steps"] for each in json.loads(rows.read_text())["rows"]] == [steps, steps]
    assert run(script, monkeypatch, *arguments, "unconditional") == 0, "the speed is not measured again"
    assert json.loads(rows.read_text())["rows"][0]["steps"] == steps
    assert run(script, monkeypatch, run_copy, "--minutes", 1, "--out", out) == 2
    assert "--minutes" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(
    script: ModuleType,
    run_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    assert run(script, monkeypatch, run_copy, "--only", "2drope") == 2
    assert "'2d-rope'" in capsys.readouterr().err
    assert run(script, monkeypatch, run_copy, "--steps", -1) == 2
    assert "--steps" in capsys.readouterr().err
    shutil.rmtree(run_copy / "codes")
    assert run(script, monkeypatch, run_copy, "--steps", 4, "--out", tmp_path / "compare") == 2
    assert "tessera encode" in capsys.readouterr().err
