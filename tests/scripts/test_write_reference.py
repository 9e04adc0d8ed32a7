"""docs/REFERENCE.md is that of the code."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import COMMANDS
from scripts import write_reference


def test_the_reference_is_that_of_the_code() -> None:
    """In a process of its own: classes that another test defines are alternatives too, and none of the reference's."""
    command = [sys.executable, write_reference.__file__, "--check"]
    check = subprocess.run(command, capture_output=True, text=True, check=False)
    assert check.returncode == 0, f"run python scripts/write_reference.py: {check.stdout}{check.stderr}"
    assert "as the code" in check.stdout


def test_it_has_every_command_and_names_a_file_that_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_reference.reference()
    assert all(f"#### `tessera {name}`" in text for commands in COMMANDS.values() for name in commands)
    monkeypatch.setattr(write_reference, "FILE", tmp_path / "REFERENCE.md")
    monkeypatch.setattr(sys, "argv", ["write_reference.py", "--check"])
    assert write_reference.run() == 1
    monkeypatch.setattr(sys, "argv", ["write_reference.py"])
    assert write_reference.run() == 0 and (tmp_path / "REFERENCE.md").read_text() == text
