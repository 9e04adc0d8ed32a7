"""The table of quantizers, made of a few images in a few steps."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.tiny_run import ROOT


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_quantizers", ROOT / "scripts" / "compare_quantizers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_row_is_trained_once_and_the_table_says_what_it_reached(
    script: ModuleType,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faster = {"tokenizer.training.precision": "float32", "tokenizer.training.fit.batch_size": 16}
    overrides = script.overrides
    monkeypatch.setattr(script, "overrides", lambda *given: {**overrides(*given), **faster})
    out, rows = tmp_path / "compare", tmp_path / "rows.json"
    arguments = ["--data", str(photographs), "--steps", "4", "--limit", "16", "--out", str(out)]
    names = ["vq-gradient-bad-start-1024", "kl-4"]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments, "--json", str(rows), "--only", *names])
    assert script.main() == 0
    wasted, continuous = json.loads(rows.read_text())
    assert wasted["warned"] and wasted["usage"] < 0.2 and wasted["PSNR, dB"] > 0 and wasted["images/s"] > 0
    assert continuous["usage"] is None and not continuous["warned"]
    printed = capsys.readouterr().out
    assert "| vq-gradient-bad-start-1024 |" in printed and "wasted" in printed
    weights = (out / "kl-4" / "tokenizer" / "model.safetensors").stat().st_mtime_ns
    assert script.main() == 0
    assert (out / "kl-4" / "tokenizer" / "model.safetensors").stat().st_mtime_ns == weights


def test_an_unknown_row_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", "--only", "fsq-1023"])
    assert script.main() == 2
    assert "'fsq-1024'" in capsys.readouterr().err
