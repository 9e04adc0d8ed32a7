"""A tokenizer opens from its own folder or from the run that holds it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.tiny_export import make_tokenizer

from foundation.errors import CheckpointError, ConfigError
from pipeline.runs.models import open_tokenizer


def test_a_run_and_its_tokenizer_folder_open_the_same(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path / "alone")
    shutil.copytree(folder, tmp_path / "run" / "tokenizer")
    alone, inside = open_tokenizer(folder, "cpu"), open_tokenizer(str(tmp_path / "run"), "cpu")
    assert alone.fingerprint == inside.fingerprint and not alone.training


def test_a_folder_without_a_tokenizer_or_a_device_that_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        open_tokenizer(tmp_path, "cpu")
    with pytest.raises(ConfigError, match="device"):
        open_tokenizer(make_tokenizer(tmp_path / "alone"), "no such device")
