"""On a simulated Windows and macOS, a run ends in the bytes of a run here, and what stops continues."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.crash_points import leftovers, tree
from support.other_systems import System, linux, macos, unportable, windows
from support.small_training import Regression, train, weights
from support.tiny_run import TINY

from foundation.storage.durable import file_sha256

SAME = ("*/model.safetensors", "codes/**/*", "samples/*", "recipe.yaml")
SYSTEMS = pytest.mark.parametrize("system", [windows, macos])


def results(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run computes, by name."""
    files = {path for pattern in SAME for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def require_patience_at_most(refused: Counter[str]) -> None:
    """pyarrow's threads close a file a moment after it was read: a second try, or a third, then removes it."""
    names = {name for name in refused if name.startswith("in use: ")}
    assert all(name.endswith(".parquet.part") and refused[name] < 20 for name in names), names


@SYSTEMS
def test_a_run_ends_in_the_same_bytes(system: System, finished_run: Path, tmp_path: Path) -> None:
    from pipeline.commands.start import start_run

    with system() as refused:
        start_run("digits", str(tmp_path / "digits"), overrides=TINY).all()
    assert results(tmp_path / "digits") == results(finished_run)
    assert not unportable(tmp_path / "digits") and not leftovers(tmp_path)
    require_patience_at_most(refused)


def command_lines(run: Path, picture: Path) -> dict[str, list[object]]:
    """Commands that write files, by the name of their folder."""
    many = ["sample", run, "--count", "8", "--batch-size", "4"]
    return {
        "few": ["sample", run, "--class-labels", "3", "--seed", "0"],
        "many": many,
        "parquet": [*many, "--format", "parquet", "--images-per-file", "4"],
        "decoded": ["decode", run / "codes", "--split", "validation", "--batch-size", "256"],
        "pairs": ["reconstruct", run, picture],
        "varied": ["edit", "vary", run, picture, "--seed", "0"],
    }


def test_commands_write_the_same_files(finished_run: Path, tmp_path: Path) -> None:
    from pipeline.cli import main

    picture = tmp_path / "CON. \u00fc.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture)
    for place, system in {"here": linux, "there": windows}.items():
        with system() as refused:
            for name, line in command_lines(finished_run, picture).items():
                assert main([*map(str, line), "-o", str(tmp_path / place / name)]) == 0
    require_patience_at_most(refused)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert not unportable(tmp_path / "there") and not leftovers(tmp_path)


@SYSTEMS
def test_a_training_that_stopped_continues_to_the_same_weights(system: System, tmp_path: Path) -> None:
    def stop(moment: str, times: int) -> None:
        if (moment, times) == ("step", 6):
            raise KeyboardInterrupt

    with system() as refused:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", Regression(stop))
        task = train(tmp_path / "stopped", Regression())
    assert torch.equal(weights(task), weights(train(tmp_path / "whole", Regression())))
    assert refused["in use"] == 0
