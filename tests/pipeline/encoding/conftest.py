"""Fixtures for exports: images, a tokenizer, a finished dataset; read only."""

from pathlib import Path

import pytest
from support.tiny_export import make_inputs, tiny_export


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of 20 images in two classes, and a frozen tokenizer."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def clean(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of an undisturbed export."""
    codes = tmp_path_factory.mktemp("clean") / "codes"
    assert tiny_export(*inputs, codes)
    return codes
