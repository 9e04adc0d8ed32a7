"""A run on machines that are taken away ends as one that was left alone, from what its mirror holds."""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import fsspec
import pytest
from support.forked import start_command
from support.object_store import ObjectStore
from support.tiny_run import TINY

from foundation.errors import Interrupted, StorageError
from foundation.storage import durable
from foundation.storage.durable import file_sha256
from foundation.storage.remote import mirror, mirror_index
from foundation.storage.remote.errors import RemoteError
from foundation.storage.remote.mirror_index import MirrorIndex, MirrorStore, TakenOver
from foundation.storage.remote.uploads import upload_bytes
from foundation.training.checkpoints import latest_checkpoint
from foundation.training.log import read_metrics
from pipeline.cli import main
from pipeline.commands.job import Job
from pipeline.commands.start import start_run
from pipeline.runs.restore import newest_steps, progress_text
from pipeline.runs.stages import Run
from stage1_tokenizer.train import TokenizerTask

ADDRESS = "memory://mirrored"
FIT = TINY["tokenizer.training.fit"]
PARTS = ("tokenizer", "codes", "prior", "samples")


@pytest.fixture
def memory() -> Iterator[None]:
    """An empty store in this process, at ``ADDRESS``."""
    yield
    system = fsspec.filesystem("memory")
    if system.exists("/mirrored"):
        system.rm("/mirrored", recursive=True)


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
        recipe = [] if self.files else ["digits", *self._given]
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
    def files(self) -> Collection[str]:
        """What the mirror lists."""
        return {} if self.index is None else self.index.files

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

    def kill_when(self, path: str) -> None:
        """Start a machine and take it away once the mirror has this file."""
        process = self.start()
        while process.is_alive() and path not in self.files:
            time.sleep(0.2)
        process.kill()
        process.join()

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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_random_kills_over_both_stages_change_nothing(object_store: ObjectStore, tmp_path: Path) -> None:
    """Each at another moment: while an index or a checkpoint is written, between them, at the start, at the end."""
    fit = {"steps": 40, "batch_size": 16, "evaluate_every": 20, "checkpoint_every": 4}
    given = options(tokenizer__training__fit=fit, prior__training__fit=fit)
    whole = start_command(["run", "digits", *given, "-o", str(tmp_path / "whole")], tmp_path / "said")
    whole.join()
    assert whole.exitcode == 0
    object_store.share = 0.1
    machines, rng = Machines(object_store, tmp_path, given), random.Random(18)
    in_stage = {"tokenizer": 0, "prior": 0}
    while min(in_stage.values()) < 10:
        files = machines.files
        stage = "prior" if "codes/manifest.json" in files else "tokenizer"
        if in_stage[stage] < 10:
            killed = machines.kill_after(rng.randrange(10, 3 * len(files) + 60))
            in_stage[stage] += killed
            assert killed or "prior/config.json" in machines.files
        else:
            machines.kill_when("codes/manifest.json")
        shutil.rmtree(machines.place.parent, ignore_errors=True)
        print(in_stage, progress_text(machines.files))
    machines.finish()
    require_equal(tmp_path / "whole", machines.place)


def begin(folder: Path, address: str | None = ADDRESS, **changes: object) -> Job:
    return start_run("digits", str(folder), {**TINY, **changes}, mirror=address)


def at_step(monkeypatch: pytest.MonkeyPatch, task: type, step: int, act: Callable[[], object]) -> None:
    real = task.train_step

    def train_step(self, batch, at):
        if at == step:
            act()
        return real(self, batch, at)

    monkeypatch.setattr(task, "train_step", train_step)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def held_by(address: str = ADDRESS) -> MirrorIndex:
    index = MirrorStore(address).read()
    assert index is not None
    return index


def test_a_stop_signal_saves_a_checkpoint_in_the_mirror_from_which_another_machine_goes_on(
    memory: None, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, TokenizerTask, 4, terminate)
        with pytest.raises(Interrupted), begin(tmp_path / "one") as job:
            job.train_tokenizer()
    assert newest_steps(held_by().files) == {"tokenizer": 5}
    assert f"mirror: {ADDRESS} holds step 5 of the tokenizer, saved 20" in capfd.readouterr().out
    shutil.rmtree(tmp_path / "one")
    with start_run(None, str(tmp_path / "two"), mirror=ADDRESS) as job:
        job.train_tokenizer()
    for path in (finished_run / "tokenizer").iterdir():
        assert file_sha256(path) == file_sha256(tmp_path / "two" / "tokenizer" / path.name)
    assert [row["step"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl", "tokenizer", "held_out")] == [
        row["step"] for row in read_metrics(finished_run / "metrics.jsonl", "tokenizer", "held_out")
    ]


def test_where_the_time_is_too_short_it_is_said_which_step_the_mirror_holds(
    memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    real, saved = mirror_index.upload, threading.Event()

    def upload(source: Path, address: str) -> None:
        if "step-00000005" in address:
            threading.Event().wait(20.0)
        real(source, address)

    def wait_for_the_mirror() -> None:
        until = time.monotonic() + 30
        while newest_steps(held_by().files).get("tokenizer") != 4 and time.monotonic() < until:
            saved.wait(0.1)
        terminate()

    monkeypatch.setattr(mirror_index, "upload", upload)
    monkeypatch.setenv("TESSERA_STOP_SECONDS", "1.5")
    at_step(monkeypatch, TokenizerTask, 4, wait_for_the_mirror)
    began = time.monotonic()
    with pytest.raises(Interrupted), begin(tmp_path / "run") as job:
        job.train_tokenizer()
    assert time.monotonic() - began < 120
    heard = capfd.readouterr().out
    assert f"mirror: {ADDRESS} holds step 4 of the tokenizer" in heard
    assert "the mirror is not complete" in heard and "the run folder has everything" in heard


@pytest.mark.parametrize("name", ["sample", "encode"])
def test_a_stop_signal_in_other_stages_saves_what_is_published(
    memory: None, run_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def interrupted(self, *_: object) -> None:
        durable.replace_file(self.folder.root / "published", b"just now")
        terminate()
        threading.Event().wait(20.0)
        raise AssertionError("the signal was not acted on")

    monkeypatch.setattr(Run, name, interrupted)
    opened = start_run(str(run_copy), mirror=ADDRESS)
    with pytest.raises(Interrupted), opened as job:
        job.all()
    assert {"published", "prior/model.safetensors", "codes/manifest.json"} <= set(held_by().files)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_that_another_machine_takes_over_ends_with_its_name_and_a_checkpoint(
    memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_LOOK_S", 0.05)
    at_step(monkeypatch, TokenizerTask, 3, lambda: _take_over(tmp_path / "other"))
    at_step(monkeypatch, TokenizerTask, 4, lambda: threading.Event().wait(2.0))
    job = begin(tmp_path / "run", **{"tokenizer.training.fit": {**FIT, "steps": 60}})
    with pytest.raises(TakenOver, match=r"another process mirrors there now: process \d+ on .*, since 20"), job:
        job.train_tokenizer()
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert latest_checkpoint(tmp_path / "run" / "checkpoints" / "tokenizer") is not None


def _take_over(folder: Path) -> None:
    store = MirrorStore(ADDRESS)
    store.index = store.read()
    assert store.index is not None
    store.claim(store.index.run, folder.name)


def test_a_run_without_the_option_keeps_its_mirror_and_says_so(memory: None, run_copy: Path, capfd) -> None:
    start_run(str(run_copy), mirror=ADDRESS).run.release()
    (run_copy / "report.html").unlink()
    with start_run(str(run_copy)) as job:
        job.report()
    assert "report.html" in held_by().files
    heard = capfd.readouterr().out
    assert f"mirror: {ADDRESS}, as before; --mirror none ends it" in heard
    assert f"mirror: {ADDRESS} has everything" in heard
    job.run.release()
    with start_run(str(run_copy), mirror="none") as job:
        job.report()
    assert "mirror" not in capfd.readouterr().out and not (run_copy / "mirror.json").exists()


def test_a_store_that_fails_at_the_end_is_an_error_after_the_run_is_done(
    memory: None, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_MIRROR_TIMEOUT", "0.5")

    def refused(*_: object) -> None:
        raise RemoteError("forbidden", "may not be written with these credentials", ADDRESS)

    job = start_run(str(run_copy), mirror=ADDRESS)
    monkeypatch.setattr(mirror_index, "upload", refused)
    with pytest.raises(StorageError, match=r"the mirror is not complete.*these credentials"), job:
        job.report()
    assert (run_copy / "report.html").is_file()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--mirror", "s3://no-such-bucket/run"], "cannot be written: its bucket or repository is not there"),
        (["--mirror", "runs/digits"], "expected: an address in an object store"),
        (["--mirror", "s3://me:secret-word@bucket/run"], "holds a password"),
    ],
)
def test_a_mirror_that_cannot_be_is_refused_at_the_start(
    object_store: ObjectStore, tmp_path: Path, capfd, line: list[str], said: str
) -> None:
    assert main(["run", "digits", "-o", str(tmp_path / "run"), *line]) == 2
    heard = capfd.readouterr().err
    assert said in heard and "secret-word" not in heard and "the-secret-of-the-tests" not in heard
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_holds_something_else_is_refused_at_the_start(
    object_store: ObjectStore, tmp_path: Path, capfd
) -> None:
    upload_bytes(b"a", f"{object_store.address}/holiday.jpg")
    assert main(["run", "digits", "-o", str(tmp_path / "run"), "--mirror", object_store.address]) == 2
    assert "holds something else than the mirror of a run" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "run needs RECIPE"),
        (["--seed", "3"], "run needs RECIPE"),
        (["--print-recipe", "--mirror", ADDRESS], "run needs RECIPE"),
        (["--sead", "3", "--mirror", ADDRESS], "unknown option --sead"),
        (["--mirror", ADDRESS, "--seed", "3"], "holds no run yet"),
        (["-x"], "-x"),
    ],
)
def test_a_run_needs_a_recipe_or_a_mirror(memory: None, capfd, line: list[str], said: str) -> None:
    assert main(["run", *line]) == 2
    assert said in capfd.readouterr().err
