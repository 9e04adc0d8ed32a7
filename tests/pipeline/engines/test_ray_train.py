"""Training on the real Ray equals ``accelerate launch`` to the bit, whatever is killed, and says what it cannot do."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.ray_nodes import NODE, ray_nodes
from support.tiny_run import ROOT, TINY

from foundation.errors import ConfigError
from foundation.storage.durable import file_sha256
from foundation.training.checkpoints import checkpoint_lengths
from pipeline.engines import ray_train, train_worker
from pipeline.runs.folder import RunFolder

pytest.importorskip("ray")
FIT = {"steps": 24, "batch_size": 16, "evaluate_every": 24, "checkpoint_every": 4}
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "scripts" / "launch" / "ddp.yaml")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_nodes(2) as found:
        yield found


def fields(**fit: Any) -> list[str]:
    """The tiny run, with trainings of some length."""
    given = {**TINY, "tokenizer.training.fit": {**FIT, **fit}, "prior.training.fit": {**FIT, **fit}}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def start(line: list[str], said: Path, **variables: str) -> subprocess.Popen:
    """A command in a process of its own, whose output goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    with said.open("wb") as stream:
        return subprocess.Popen([sys.executable, *line], stdout=stream, stderr=stream, env=environment, cwd=said.parent)


def on_ray(cluster: Any, *line: str, workers: int = 2) -> list[str]:
    return ["-m", "pipeline.cli", *line, "--engine", "ray", "--address", cluster.address, "--workers", str(workers)]


def workers_here() -> list[psutil.Process]:
    """The workers of Ray Train on this test's cluster."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::RayTrainWorker"):
                found.append(each)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until(there: Callable[[], Any], process: subprocess.Popen, said: Path) -> None:
    """Until something is so while a command runs."""
    while not there():
        assert process.poll() is None, said.read_text()
        time.sleep(0.02)


def weights(run: Path) -> dict[str, str]:
    """Hashes of what both stages made."""
    files = [run / stage / "model.safetensors" for stage in ("tokenizer", "prior")]
    return {str(each.relative_to(run)): file_sha256(each) for each in [*files, run / "samples" / "codes.npy"]}


def launch(folder: Path, line: list[str]) -> dict[str, str]:
    """What two processes of ``accelerate launch`` make."""
    whole = [*LAUNCH, "-m", "pipeline.cli", "run", "digits", "--out", "run", *line]
    assert start(whole, folder / "said").wait() == 0, (folder / "said").read_text()
    assert "2 processes" in (folder / "said").read_text()
    return weights(folder / "run")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return launch(tmp_path_factory.mktemp("launched"), fields())


def test_two_workers_equal_two_launched_processes_though_the_command_is_stopped_and_a_worker_killed(
    cluster: Any, launched: dict[str, str], tmp_path: Path
) -> None:
    said, run = tmp_path / "said", tmp_path / "run"
    line = on_ray(cluster, "run", "digits", "--out", "run", *fields())
    process = start(line, said)
    wait_until((run / "checkpoints" / "tokenizer" / "step-00000008").exists, process, said)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, said.read_text()
    (stopped, _), *_ = checkpoint_lengths(run / "checkpoints" / "tokenizer")
    assert stopped >= 8 and said.read_text().endswith("stopped; run the same command again to continue\n")

    process = start(line, said)
    wait_until((run / "checkpoints" / "prior" / "step-00000008").exists, process, said)
    workers_here()[-1].kill()
    assert process.wait() == 0, said.read_text()
    assert weights(run) == launched
    text = said.read_text()
    assert text.count("ray: a worker is lost: worker") == 1 and "pid" in text
    assert text.count("ray: goes on from the last checkpoint, workers: 2") == 1
    steps = [int(each) for each in re.findall(r"continuing from step (\d+)", text)]
    assert len(steps) == 2 and steps[0] == stopped and steps[1] >= 4
    assert "(RayTrainWorker" not in text and "raylet" not in text and "logging.cc" not in text, "ours alone"
    assert not list(run.glob(".tmp*")), "nothing of the driver's is left"


@pytest.mark.slow
def test_an_error_of_a_worker_arrives_once_as_itself(cluster: Any, tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert start(on_ray(cluster, "train-prior", "digits", "--out", "run", *fields()), said).wait() == 2
    text = said.read_text()
    assert text.count("no such token dataset") == 1 and "Traceback" not in text and "is lost" not in text


@pytest.mark.slow
def test_workers_that_cannot_be_had_are_refused_with_a_reason(cluster: Any, tmp_path: Path) -> None:
    said = tmp_path / "said"
    line = on_ray(cluster, "train-tokenizer", "digits", "--out", "run", *fields(), workers=4)
    assert start(line, said, TESSERA_PROCESS_TIMEOUT="3").wait() == 2
    assert "0 of 4 workers with a core each have begun; the cluster has 2 nodes: 2 CPUs" in said.read_text()
    line = on_ray(cluster, "train-tokenizer", "digits", "--out", "run", *fields(), workers=3)
    assert start(line, said).wait() == 2
    assert "3 for batches of 16" in said.read_text()
    assert not (tmp_path / "run").exists(), "what was not begun leaves nothing"


def test_a_folder_that_a_worker_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_worker, "_SECONDS_TO_APPEAR", 0.3)
    with ray_train._shared_token(tmp_path / "run") as token:
        train_worker._require_shared(tmp_path / "run", token)
        with pytest.raises(ConfigError, match=r"--out: the machine .* does not see(.|\n)*NFS"):
            train_worker._require_shared(tmp_path / "elsewhere", token)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("n", "at_most", "found"), [(16, 2, 2), (16, 3, 2), (96, 64, 48), (7, 6, 1), (4, 9, 4), (5, 0, 1)]
)
def test_as_many_workers_as_share_a_batch_evenly(n: int, at_most: int, found: int) -> None:
    assert ray_train._largest_divisor(n, at_most) == found


@pytest.mark.slow
def test_a_lost_node_leaves_fewer_workers(cluster: Any, tmp_path: Path) -> None:
    said, run = tmp_path / "said", tmp_path / "run"
    line = on_ray(cluster, "train-tokenizer", "digits", "--out", "run", *fields(steps=120))
    process = start(line, said)
    wait_until((run / "checkpoints" / "tokenizer" / "step-00000012").exists, process, said)
    cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
    try:
        assert process.wait() == 0, said.read_text()
    finally:
        cluster.add_node(**{name: value for name, value in NODE.items() if name != "include_dashboard"})
    assert "goes on from the last checkpoint, workers: 1" in said.read_text()
    assert (run / "tokenizer" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_change_nothing(cluster: Any, tmp_path: Path) -> None:
    said, run, rng = tmp_path / "said", tmp_path / "run", random.Random(0)
    line = fields(steps=80)
    process = start(on_ray(cluster, "run", "digits", "--out", "run", *line), said)
    for _ in range(10):
        before = RunFolder(run).done()
        wait_until(lambda before=before: RunFolder(run).done() - before, process, said)
        time.sleep(rng.random() * 2)
        workers_here()[rng.randrange(2)].kill()
    assert process.wait() == 0, said.read_text()
    assert said.read_text().count("ray: a worker is lost") == 10
    (tmp_path / "launched").mkdir()
    assert weights(run) == launch(tmp_path / "launched", line)
