"""A process that is killed, or meets a full, broken or lying disk, at any durable operation tears and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.crash_points import CRASHED, DONE, Places, in_child, leftovers, stopped_everywhere, summary, tree
from support.small_tokenizer import freeze
from support.token_folders import write_tokens

from foundation.codes.dataset import TokenDataset
from foundation.errors import TesseraError
from foundation.hardware import TokenAccess
from foundation.storage import durable
from foundation.training.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from foundation.training.log import MetricsLog, read_metrics
from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.tokenizer import TokenizerModel


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"weights": torch.rand(3, 5, generator=generator), "moments": {0: torch.ones(4) * step}, "step": step}


def sound(root: Path) -> list[int]:
    """Steps of the checkpoints that verify, each found as if it were the newest, with the content it was saved with."""
    found = []
    for path in sorted(root.glob("step-*")):
        alone = root.parent / f"{root.name}-alone"
        shutil.copytree(path, alone / path.name)
        try:
            checkpoint = latest_checkpoint(alone)
        except TesseraError:
            continue
        finally:
            shutil.rmtree(alone)
        require_right(checkpoint)
        found.append(checkpoint.step)
    return found


def require_right(checkpoint: Checkpoint | None) -> None:
    assert checkpoint is not None
    expected = state(checkpoint.step)
    assert checkpoint.state["step"] == checkpoint.step
    assert torch.equal(checkpoint.state["weights"], expected["weights"])
    assert torch.equal(checkpoint.state["moments"][0], expected["moments"][0])


@pytest.mark.parametrize("steps", [(3,), pytest.param((3, 4, 5), marks=pytest.mark.slow)])
def test_a_checkpoint_is_whole_or_not_there_and_two_sound_ones_always_are(
    tmp_path: Path, keep: Callable, steps: tuple[int, ...]
) -> None:
    """Saving checkpoints, with the rotation after each."""
    beginning = tmp_path / "beginning"
    for step in (1, 2):
        save_checkpoint(beginning, step, state(step))
    places, clean = Places(tmp_path / "places", beginning), tmp_path / "clean"
    shutil.copytree(beginning, clean)

    def save(root: Path) -> None:
        for step in steps:
            save_checkpoint(root, step, state(step))

    save(clean)
    outcomes, fewest = [], 2
    for outcome in stopped_everywhere(places.new, save):
        outcomes.append(outcome)
        root = outcome.place
        newest = latest_checkpoint(root)
        require_right(newest)
        assert newest is not None and not newest.skipped, outcome
        found = sound(root)
        fewest = min(fewest, len(found))
        assert fewest >= 2 and newest.step == max(found), outcome
        assert in_child(partial(save, root)) == DONE
        durable.sweep(root)
        assert tree(root) == tree(clean) and not leftovers(root), outcome
    keep("checkpoints all or nothing", **summary(outcomes), torn=0, **{"fewest sound checkpoints": str(fewest)})


def test_a_model_is_published_whole_or_not_at_all(tmp_path: Path, task: Any, keep: Callable) -> None:
    """A tokenizer with its canary, as a run freezes it."""
    places = Places(tmp_path / "places")
    clean = freeze(task, tmp_path / "clean" / "tokenizer").parent
    outcomes = []
    for outcome in stopped_everywhere(places.new, lambda folder: freeze(task, folder / "tokenizer")):
        outcomes.append(outcome)
        folder = outcome.place / "tokenizer"
        if folder.exists():
            check_canary(TokenizerModel.load(folder), folder)
        elif outcome.fault == "short":
            assert outcome.status == 3, "a short write went unnoticed"
        in_child(partial(freeze, task, folder))
        durable.sweep(folder.parent)
        assert tree(folder.parent) == tree(clean) and not leftovers(folder.parent), outcome
    keep("models all or nothing", **summary(outcomes), torn=0)


def test_a_packed_copy_of_codes_is_whole_or_not_there(tmp_path: Path, keep: Callable) -> None:
    places = Places(tmp_path / "places", write_tokens(tmp_path / "beginning", (9, 8)))
    truth = TokenDataset(places.beginning, "train", TokenAccess(form="memory"))
    packed = TokenAccess(form="packed")
    outcomes = []
    for outcome in stopped_everywhere(places.new, lambda folder: TokenDataset(folder, "train", packed)):
        outcomes.append(outcome)
        ours = TokenDataset(outcome.place, "train", packed)
        assert np.array_equal(ours.codes_NT, truth.codes_NT) and np.array_equal(ours.views_N, truth.views_N)
        assert np.array_equal(ours.labels_N, truth.labels_N)
        shown = [each for each in (outcome.place / ".packed" / "train").iterdir() if each.is_dir()]
        assert len([each for each in shown if ".tmp-" not in each.name]) == 1, outcome
    keep("packed copies all or nothing", **summary(outcomes), torn=0)


def test_a_file_is_replaced_or_left_as_it_was(tmp_path: Path, keep: Callable) -> None:
    places, old, new = Places(tmp_path / "places"), b"old" * 50, b"new one" * 99
    places.beginning = tmp_path / "beginning"
    places.beginning.mkdir()
    (places.beginning / "recipe.yaml").write_bytes(old)
    outcomes = []
    for outcome in stopped_everywhere(places.new, lambda folder: durable.replace_file(folder / "recipe.yaml", new)):
        outcomes.append(outcome)
        path = outcome.place / "recipe.yaml"
        assert path.read_bytes() in (old, new), outcome
        durable.replace_file(path, new)
        durable.sweep(path.parent)
        assert path.read_bytes() == new and not leftovers(path.parent)
    keep("files all or nothing", **summary(outcomes), torn=0)


def test_the_log_of_metrics_loses_at_most_the_line_being_written(tmp_path: Path, keep: Callable) -> None:
    places = Places(tmp_path / "places")

    def log(folder: Path) -> None:
        writer = MetricsLog(folder / "metrics.jsonl", "toy")
        for step in range(5):
            writer.write("train", step, {"loss": step / 2})
        writer.forget_from(4)

    outcomes = []
    for outcome in stopped_everywhere(places.new, log, ("killed", "full", "broken")):
        outcomes.append(outcome)
        path = outcome.place / "metrics.jsonl"
        rows = read_metrics(path) if path.exists() else []
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert len(rows) >= min(outcome.operation - 1, 4), outcome
        MetricsLog(path, "toy").forget_from(len(rows))
        assert all(json.loads(line) for line in path.read_text().splitlines())
    assert not [each for each in outcomes if each.status == CRASHED]
    keep("the log of metrics", **{"crash points": len(outcomes), "whole lines lost": 0})


FULL_DISK = """
import os, sys, torch
from pathlib import Path
from foundation.training.checkpoints import latest_checkpoint, save_checkpoint
from foundation.storage.durable import sweep
from foundation.errors import StorageError
from foundation.storage import durable
durable.require_free_space = lambda *_: None  # as if another process took the space meanwhile
root, refused = Path(sys.argv[1]) / "checkpoints", 0
for step in range(1, 9):
    try:
        save_checkpoint(root, step, {"weights": torch.full((60_000 * step,), float(step))}, keep=2)
    except StorageError as error:
        assert "the disk is full" in str(error), error
        refused += 1
    found = latest_checkpoint(root)
    assert found.state["weights"].unique().tolist() == [found.step], found
    assert not [each for each in root.iterdir() if each.name.startswith(".tmp-")]
print(refused)
"""


def test_a_disk_that_is_really_full_costs_no_checkpoint(tmp_path: Path, keep: Callable) -> None:
    """On a small disk of its own, without the check of free space beforehand."""
    shell = 'mount -t tmpfs -o size=3m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    line = ["unshare", "-rm", "sh", "-c", shell, "sh", str(tmp_path), sys.executable, FULL_DISK]
    try:
        allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this system mounts no private disk")
    environment = {**os.environ, "PYTHONPATH": str(Path(durable.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    keep("a disk that is really full", **{"saves refused": int(done.stdout), "checkpoints lost": 0})


def test_every_refusal_of_a_system_call_has_a_remedy(tmp_path: Path) -> None:
    for number, words in ((errno.ENOSPC, "the disk is full"), (errno.EIO, "could not be written")):
        with pytest.raises(TesseraError, match=words), durable.writing(tmp_path / "x"):
            raise OSError(number, os.strerror(number))
