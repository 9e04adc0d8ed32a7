"""Pictures that are damaged, deleted or truncated while a training reads them, and a reader that is killed."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.picture_runs import begin, save_pictures

from foundation.images.listing import Listing
from foundation.training.log import read_metrics
from pipeline.runs.failed_images import failed_images
from pipeline.runs.folder import RunFolder

STEPS = {"batch_size": 16, "evaluate_every": 50, "checkpoint_every": 20, "log_every": 1}


def settings(steps: int, workers: int) -> dict[str, object]:
    return {
        "data.cache_mib": 0,
        "data.identity": "files",
        "data.max_failed_share": 0.2,
        "data.validation_share": 0.1,
        "machine.workers": workers,
        "tokenizer.training.fit": {"steps": steps, **STEPS},
    }


class Saboteur(threading.Thread):
    """At a step of the training: deletes and truncates pictures, and kills a reader."""

    def __init__(self, run: Path, at_step: int, gone: list[Path], cut: list[Path]) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.at_step, self.gone, self.cut = run, at_step, gone, cut
        self.killed: list[int] = []

    def run(self) -> None:
        while len(read_metrics(self.run_folder / "metrics.jsonl", "tokenizer", "train")) < self.at_step:
            time.sleep(0.01)
        for path in self.gone:
            path.unlink()
        for path in self.cut:
            path.write_bytes(path.read_bytes()[:50])
        forked = _line(psutil.Process())
        readers = [each for each in psutil.Process().children() if _line(each) == forked]
        if readers:
            os.kill(readers[0].pid, signal.SIGKILL)
            self.killed.append(readers[0].pid)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def pictures(folder: Path, n: int) -> tuple[list[Path], list[Path], list[Path]]:
    """``n`` pictures: a hundredth damaged, and a 400th each to be deleted and to be truncated later."""
    save_pictures(folder, range(n))
    files = sorted(folder.iterdir())
    picked = np.random.default_rng(0).permutation(n)
    damaged, gone, cut = picked[: n // 100], picked[n // 100 :][: n // 400], picked[-(n // 400) :]
    for i in damaged:
        files[i].write_bytes(b"no image")
    return [files[i] for i in damaged], [files[i] for i in gone], [files[i] for i in cut]


def lose(home: Path, n: int, workers: int) -> None:
    damaged, gone, cut = pictures(home / "images", n)
    steps = 3 * n // 16
    saboteur = Saboteur(home / "run", steps // 3, gone, cut)
    saboteur.start()
    job = begin(home / "run", home / "images", **settings(steps, workers))
    job.train_tokenizer()
    job.run.release()
    saboteur.join(10)
    assert bool(saboteur.killed) == bool(workers)
    folder = RunFolder(home / "run")
    lines = folder.failures.read_text(encoding="utf-8").splitlines()
    found = {name: each for split in failed_images(folder).values() for name, each in split.items()}
    assert len(lines) == len(found), "each image is listed once"
    assert {*found} == {each.name for each in (*damaged, *gone, *cut)}
    assert all(found[each.name].code == "unreadable" for each in damaged)
    assert all(found[each.name].code == "vanished" for each in gone)
    assert all(found[each.name].code in ("changed", "unreadable") for each in cut)
    listing = Listing.load(folder.listing)
    assert sum(len(each) for each in listing.ids()) == n


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_ends_and_lists_each_lost_picture_once(tmp_path: Path, workers: int) -> None:
    lose(tmp_path, 400, workers)


@pytest.mark.slow
def test_four_thousand_pictures(tmp_path: Path, keep: Callable) -> None:
    lose(tmp_path, 4000, 2)
    keep("lost images", images=4000, damaged=40, deleted=10, truncated=10, killed=1, listed=60)


def test_a_training_that_was_interrupted_among_lost_pictures_ends_with_the_same_weights(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 400)
    weights = []
    for name, first_workers, then_workers in (("one", 2, 2), ("two", 1, 0)):
        run = tmp_path / name
        for steps, workers in ((20, first_workers), (45, then_workers)) if name == "two" else ((45, first_workers),):
            changes = {**settings(steps, workers), "tokenizer.training.optim": {"schedule": "constant"}}
            job = begin(run, tmp_path / "images", **changes)
            job.train_tokenizer()
            job.run.release()
        weights.append((run / "tokenizer" / "model.safetensors").read_bytes())
        shutil.rmtree(run / "checkpoints")
    assert weights[0] == weights[1]
