"""The launch files start what they say (slow: whole processes)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.tiny_run import ROOT

from foundation.storage.durable import file_sha256
from foundation.training.log import read_metrics
from pipeline.cli import main

LAUNCH = ROOT / "scripts" / "launch"


@pytest.mark.slow
@pytest.mark.parametrize(("config", "how"), [("ddp.yaml", "replicated (DDP)"), ("fsdp2.yaml", "sharded (FSDP2)")])
def test_two_processes_train_a_prior_on_a_cpu(config: str, how: str, run_copy: Path) -> None:
    before = read_metrics(run_copy / "metrics.jsonl", "prior", "train")
    digest = file_sha256(run_copy / "prior" / "model.safetensors")
    for name in ("prior", "checkpoints/prior", "samples"):
        shutil.rmtree(run_copy / name)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / config)]
    line = [*launch, "-m", "pipeline.cli", "train-prior", str(run_copy)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"prior: 2 processes, weights {how}" in done.stdout
    after = read_metrics(run_copy / "metrics.jsonl", "prior", "train")
    assert [row["step"] for row in after] == [row["step"] for row in before]
    assert after[0]["loss"] == pytest.approx(before[0]["loss"], rel=1e-4)
    assert file_sha256(run_copy / "prior" / "model.safetensors") != digest, "dropout differs from process to process"


def test_the_files_say_what_accelerate_needs() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    for path in LAUNCH.glob("*.yaml"):
        config = load_config_from_file(str(path))
        assert config.mixed_precision == "no" and config.num_processes == 2, path.name
    assert yaml.safe_load((LAUNCH / "fsdp2.yaml").read_text())["fsdp_config"]["fsdp_version"] == 2
    for path in LAUNCH.glob("*.sh"):
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_the_scripts_give_options_that_the_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    line = next(each for each in (LAUNCH / "slurm_encode.sh").read_text().splitlines() if "tessera encode" in each)
    options = re.findall(r"--[a-z-]+", line)
    assert options and main(["encode", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{option} " in shown for option in options), options
