"""A run on machines that are taken away ends as one that was left alone, from what its mirror holds."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from support.forked import start_command
from support.object_store import ObjectStore
from support.tiny_run import TINY

from foundation.storage.durable import file_sha256
from foundation.storage.remote.mirror_index import MirrorIndex, MirrorStore
from pipeline.cli import main
from pipeline.commands.runs import start_run
from pipeline.runs.restore import newest_steps

PARTS = ("tokenizer", "codes", "prior", "samples")


def options(**changes: object) -> list[str]:
    values = {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}}
    return [part for name, value in values.items() for part in (f"--{name}", json.dumps(value))]


class Machines:
    """Machines that are taken away: each has a folder that is gone afterwards.

    Args:
        store: of the mirror.
        folder: for the machines' folders.
        given: options of the run.
    """

    def __init__(self, store: ObjectStore, folder: Path, given: list[str]) -> None:
        self.store, self.address, self.n = store, f"{store.address}/run", 0
        self._folder, self._given = folder, given

    @property
    def place(self) -> Path:
        return self._folder / f"machine-{self.n}" / "run"

    @property
    def said(self) -> str:
        return (self._folder / f"said-{self.n}").read_text()

    def start(self) -> BaseProcess:
        """On a new machine, with nothing but the mirror once it has something."""
        self.n += 1
        recipe = [] if self.index is not None and self.index.files else ["digits", *self._given]
        line = ["run", *recipe, "--mirror", self.address, "-o", str(self.place)]
        return start_command(line, self._folder / f"said-{self.n}", self.store.environment)

    @property
    def index(self) -> MirrorIndex | None:
        share, self.store.share = self.store.share, 0.0
        try:
            return MirrorStore(self.address).read()
        finally:
            self.store.share = share

    @property
    def n_requests(self) -> int:
        return len(self.store.requests)

    def kill_after(self, n_requests: int, number: int = signal.SIGKILL) -> bool:
        """Start a machine and take it away after so many requests; whether it had not finished."""
        process, before = self.start(), self.n_requests
        assert process.pid is not None
        while process.is_alive() and self.n_requests - before < n_requests:
            time.sleep(0.002)
        lived = process.is_alive()
        if lived:
            os.kill(process.pid, number)
        process.join()
        if not lived:
            assert process.exitcode == 0, self.said
        return lived

    def finish(self) -> None:
        process = self.start()
        process.join()
        assert process.exitcode == 0, self.said


def require_equal(one: Path, other: Path) -> None:
    for part in PARTS:
        files = [path for path in (one / part).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert file_sha256(path) == file_sha256(other / path.relative_to(one)), path


def test_a_run_whose_machines_are_killed_and_emptied_ends_as_one_that_was_left_alone(
    finished_run: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    object_store.share = 0.15
    machines = Machines(object_store, tmp_path, options())
    rng = random.Random(0)
    moments = [rng.randrange(20, 120) for _ in range(2)]
    kills = 0
    for moment in moments:
        kills += machines.kill_after(moment)
        shutil.rmtree(machines.place.parent, ignore_errors=True)
    machines.finish()
    require_equal(finished_run, machines.place)
    assert not (finished_run / "mirror.json").exists()
    assert "the-secret-of-the-tests" not in machines.said
    for path in machines.place.rglob("*"):
        assert not path.is_file() or b"the-secret-of-the-tests" not in path.read_bytes()
    assert not any(b"the-secret-of-the-tests" in each for each in object_store.files().values())
    assert kills == len(moments)
