"""The command line as a function, and a tokenizer that it imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.parity_fixtures import Tessera

from pipeline.cli import main


@pytest.fixture
def tessera(capsys: pytest.CaptureFixture[str]) -> Tessera:
    """Run the command line: its exit status, and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


@pytest.fixture
def tokenizer(parity: Path, tmp_path: Path, tessera: Tessera) -> Path:
    """An imported LlamaGen tokenizer with the codes of grid4: 4 x 4 of 64."""
    folder = parity / "llamagen_vq" / "vq16_tiny"
    config = ("--config", folder / "config.json", "--image-size", 64)
    assert tessera("import", folder / "state.safetensors", "-o", tmp_path / "vq16", *config)[0] == 0
    return tmp_path / "vq16"
