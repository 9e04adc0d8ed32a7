"""What README.md says works: its commands and its Python run, as written, beside a finished run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import ROOT, TINY

from pipeline.cli import COMMANDS, main

README = (ROOT / "README.md").read_text()
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
TESSERA = [line for line in BASH.splitlines() if line.startswith("tessera ")]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workplace(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the README's paths exist."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, tmp_path / "runs" / "digits")
    (tmp_path / "path" / "to" / "images").mkdir(parents=True)
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "path" / "to" / "images" / f"{i}.png")
    return tmp_path


def test_the_commands_run_as_written(workplace: Path) -> None:
    assert len(TESSERA) >= 6
    for line in TESSERA:
        arguments = [name for word in shlex.split(line, comments=True)[1:] for name in _files(word) or [word]]
        if arguments[:2] == ["run", "digits"]:
            arguments += [part for name, value in TINY.items() for part in (f"--{name}", json.dumps(value))]
        elif arguments[0] == "run":
            small = {
                **TINY,
                "data.preprocess": {"height": 8, "width": 8},
                "samples.unconditional_images": 1,
            }
            arguments = ["6" if word == "2000" else word for word in arguments]  # the line's number of steps
            arguments += [part for name, value in small.items() for part in (f"--{name}", json.dumps(value))]
        assert main(arguments) == 0, line
    assert len(list((workplace / "three").glob("3-seed*.png"))) == 16
    assert (workplace / "runs" / "mine" / "report.html").exists()


def _files(pattern: str) -> list[str]:
    """What a shell makes of a pattern."""
    return sorted(map(str, Path().glob(pattern))) if "*" in pattern else []


def test_the_python_runs_as_written(workplace: Path) -> None:
    assert len(PYTHON) >= 2
    script = workplace / "readme.py"
    script.write_text("\n".join(PYTHON).replace("runs/digits/codes", str(workplace / "runs/digits/codes")))
    environment = {**os.environ, "HF_DATASETS_CACHE": str(workplace / "cache")}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "(8, 4, 4)" in done.stdout
    assert (workplace / "three.png").exists()


def test_every_command_and_package_is_mentioned() -> None:
    for name in (name for commands in COMMANDS.values() for name in commands):
        assert f"tessera {name.split()[0]}" in README, name
    for folder in ("foundation", "stage1_tokenizer", "stage2_prior", "pipeline", "scripts", "tests"):
        assert f"{folder}/" in README
