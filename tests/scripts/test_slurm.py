"""The Slurm scripts on a real Slurm of one node (slow; CONTRIBUTING.md says how to install it)."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.slurm_node import WHY_NOT, SlurmNode, slurm_node
from support.tiny_run import ROOT

from foundation.storage.durable import file_sha256

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
LAUNCH = ROOT / "scripts" / "launch"
TWO_TASKS = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]
STEPS = 150
LENGTHS = {
    "tokenizer.training.fit.steps": STEPS,
    "tokenizer.training.fit.checkpoint_every": 20,
    "tokenizer.training.fit.evaluate_every": 50,
    "tokenizer.training.precision": "float32",
    "prior.training.precision": "float32",
    "prior.training.fit.steps": STEPS,
    "prior.training.fit.checkpoint_every": 20,
    "prior.training.fit.evaluate_every": 50,
    "encode.images_per_shard": 100,
    "samples.images_per_class": 2,
}
OPTIONS = [word for name, value in LENGTHS.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmNode]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        with slurm_node(tmp_path_factory.mktemp("slurm")) as started:
            yield started


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes of ``accelerate launch``."""
    folder = tmp_path_factory.mktemp("launched") / "run"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / "ddp.yaml")]
    line = [*launch, "-m", "pipeline.cli", "run", "digits", "-o", str(folder), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def weights(run: Path) -> list[str]:
    return [file_sha256(run / stage / "model.safetensors") for stage in ("tokenizer", "prior")]


def log_of(job: int, folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"slurm-{job}*.out")))


def wait_for_step(run: Path, stage: str, step: int, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not (run / "checkpoints" / stage / f"step-{step:08d}").exists():
        assert time.monotonic() < until, f"{stage} has not come to step {step}"
        time.sleep(0.1)


def submit_training(node: SlurmNode, folder: Path) -> int:
    words = [str(LAUNCH / "slurm.sh"), "run", "digits", "-o", str(folder / "run"), *OPTIONS]
    return node.submit(*TWO_TASKS, *words, cwd=folder)


def test_two_tasks_train_what_two_launched_processes_train(node: SlurmNode, undisturbed: Path, tmp_path: Path) -> None:
    job = submit_training(node, tmp_path)
    assert node.wait(job) == {"": "COMPLETED"}, log_of(job, tmp_path)
    assert weights(tmp_path / "run") == weights(undisturbed)


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_a_job_that_is_queued_again_in_the_middle_ends_the_same(
    node: SlurmNode, undisturbed: Path, tmp_path: Path, stage: str
) -> None:
    job = submit_training(node, tmp_path)
    wait_for_step(tmp_path / "run", stage, 40)
    node.command("scontrol", "requeue", str(job))
    assert node.wait(job) == {"": "COMPLETED"}, log_of(job, tmp_path)
    assert "continuing from step" in log_of(job, tmp_path)
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_a_job_whose_time_is_up_saves_a_checkpoint_and_is_queued_again(
    node: SlurmNode, undisturbed: Path, tmp_path: Path
) -> None:
    job = submit_training(node, tmp_path)
    wait_for_step(tmp_path / "run", "tokenizer", 20)
    node.command("scancel", "--signal=TERM", str(job))  # the tasks alone, as at the end of the time
    assert node.wait(job) == {"": "COMPLETED"}, log_of(job, tmp_path)
    assert "is queued again and continues" in log_of(job, tmp_path)
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_a_cancelled_job_stays_cancelled(node: SlurmNode, tmp_path: Path) -> None:
    job = submit_training(node, tmp_path)
    wait_for_step(tmp_path / "run", "tokenizer", 20)
    node.command("scancel", str(job))
    assert node.wait(job) == {"": "CANCELLED"}, log_of(job, tmp_path)
    time.sleep(2)
    assert node.states(job) == {"": "CANCELLED"}


def test_four_jobs_of_an_array_encode_what_one_process_encodes(
    node: SlurmNode, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "tokenizer", "images.parquet"):
        subprocess.run(["cp", "-r", str(undisturbed / name), str(run / name)], check=True)
    words = ["--array=0-3", "--gpus-per-task=0", "--cpus-per-task=1", str(LAUNCH / "slurm_encode.sh"), str(run)]
    job = node.submit(*words, cwd=tmp_path)
    assert set(node.wait(job).values()) == {"COMPLETED"}, log_of(job, tmp_path)
    names = sorted(path.relative_to(undisturbed / "codes") for path in (undisturbed / "codes").rglob("*.parquet"))
    assert len(names) > 15
    for name in names:
        assert file_sha256(run / "codes" / name) == file_sha256(undisturbed / "codes" / name), name
    splits = [json.loads((each / "codes" / "manifest.json").read_text())["splits"] for each in (run, undisturbed)]
    assert splits[0] == splits[1]
