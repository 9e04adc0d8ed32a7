"""docs/REFERENCE.md is that of the code."""

import sys
from pathlib import Path

import pytest

from pipeline.cli import COMMANDS
from scripts import write_reference


def test_the_reference_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["write_reference.py", "--check"])
    assert write_reference.run() == 0, "run python scripts/write_reference.py"
    assert "as the code" in capsys.readouterr().out


def test_it_has_every_command_and_names_a_file_that_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_reference.FILE.read_text()
    assert all(f"#### `tessera {name}`" in text for commands in COMMANDS.values() for name in commands)
    monkeypatch.setattr(write_reference, "FILE", tmp_path / "REFERENCE.md")
    monkeypatch.setattr(sys, "argv", ["write_reference.py", "--check"])
    assert write_reference.run() == 1
    monkeypatch.setattr(sys, "argv", ["write_reference.py"])
    assert write_reference.run() == 0 and (tmp_path / "REFERENCE.md").read_text() == text
