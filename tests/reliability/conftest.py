"""Fixtures for the tests of promises: the record of figures, a small trained tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.small_tokenizer import freeze, trained_task

Keep = Callable[..., None]


@pytest.fixture
def keep(record_property: Callable[[str, object], None]) -> Keep:
    """Keep the figures of a promise for ``docs/RELIABILITY.md``: ``keep("checkpoints", damages=200, wrong=0)``."""

    def note(promise: str, **figures: object) -> None:
        record_property("promise", promise)
        record_property("figures", json.dumps(figures))

    return note


@pytest.fixture(scope="session")
def task():
    """A tokenizer after 40 steps, whose averaged weights differ from its weights."""
    return trained_task()


@pytest.fixture(scope="session")
def frozen(task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its averaged weights in a model folder with a canary; read only."""
    return freeze(task, tmp_path_factory.mktemp("frozen") / "tokenizer")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Forked children cannot use their parent's OpenMP threads."""
    torch.set_num_threads(1)
