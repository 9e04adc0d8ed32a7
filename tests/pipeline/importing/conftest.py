"""The parity fixtures, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from parity_fixtures import PARITY

from pipeline.cli import main


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder of parity fixtures."""
    if not PARITY.is_dir():
        pytest.skip(f"parity fixtures are not at {PARITY}")
    return PARITY


@pytest.fixture
def tessera(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command line: its exit status, and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run
