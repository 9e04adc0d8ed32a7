"""What the documents say works: every command and every line of Python in docs/, beside a finished run.

``COOKBOOK.md`` and ``TUTORIAL.md`` run in ``test_cookbook.py`` and ``scripts/test_write_tutorial.py``. What needs files
of other people, a store or a cluster runs in the tests that ``ELSEWHERE`` names.
"""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import ROOT, TINY

from pipeline import ImageGenerator
from pipeline.cli import main

OTHERS = ("RESULTS.md", "REFERENCE.md", "COOKBOOK.md", "TUTORIAL.md")
TEXTS = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.name not in OTHERS
}
BLOCKS = [
    (name, *found) for name, text in TEXTS.items() for found in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
]
PYTHON = [(name, code) for name, language, code in BLOCKS if language == "python"]
LINES = sorted(
    {line.split("  #")[0].strip() for _, _, code in BLOCKS for line in code.splitlines() if line.startswith("tessera ")}
)
ELSEWHERE = {
    "tessera import ": "tests/pipeline/interop/test_importer.py",
    "tokenizers/vq16": "tests/pipeline/interop/test_importer_parity.py",
    "llamagen-b": "tests/pipeline/interop/test_priors.py",
    "--engine ray": "tests/pipeline/engines/test_ray_data.py",
    "--mirror": "tests/pipeline/runs/test_mirror.py",
    "s3://": "tests/pipeline/generation/test_bulk_remote.py",
    "tessera serve": "tests/pipeline/app/test_browser.py",
    "--space": "tests/pipeline/report/test_model_card.py",
}
"""part of a line => the tests that run it"""
HERE = [line for line in LINES if not any(part in line for part in ELSEWHERE)]
TRAINS = ("run", "train-tokenizer", "train-prior")
SMALL_TOKENIZER = {"tokenizer.training.fit": TINY["tokenizer.training.fit"]}
SMALL_PRIOR = {"prior.training.fit": TINY["prior.training.fit"]}


@pytest.fixture
def workplace(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the paths of the documents exist."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "other", "first", "refit", "NAME"):
        shutil.copytree(finished_run, tmp_path / "runs" / name)
    rng = np.random.default_rng(0)
    for folder in ("path/to/images", "photos"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(24):
            size = (48, 72, 3) if i % 2 else (72, 48, 3)
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "scenes").mkdir()
    for i in range(20):
        np.save(tmp_path / "scenes" / f"{i}.npy", rng.integers(0, 10_000, (16, 16, 4), np.uint16))
    shutil.copytree(tmp_path / "runs" / "digits" / "codes", tmp_path / "new")
    samples = ImageGenerator.from_pretrained("runs/digits")([3, 5], 5, seed=0, output_type="np").images
    np.savez(tmp_path / "other-samples.npz", (samples * 255).round().astype(np.uint8))
    return tmp_path


def test_every_line_runs_here_or_in_a_test_that_exists() -> None:
    assert len(HERE) > 15
    for part, test in ELSEWHERE.items():
        assert any(part in line for line in LINES), part
        assert (ROOT / test).is_file(), test


@pytest.mark.slow
@pytest.mark.parametrize("line", HERE)
def test_a_command_runs_as_written(line: str, workplace: Path) -> None:
    words = shortened(shlex.split(line)[1:])
    if words[0] in TRAINS and "-o" in words:
        shutil.rmtree(words[words.index("-o") + 1], ignore_errors=True)
    if "imported" in words:
        stage = "tokenizer" if words[0] == "train-tokenizer" else "prior"
        shutil.copytree(workplace / "runs" / "digits" / stage, workplace / "imported")
    if words[0] == "sample" and "runs/folder" in words:
        assert main(shortened(shlex.split(next(each for each in HERE if "shapes:" in each))[1:])) == 0
    assert main(words) == 0, line


def shortened(words: list[str]) -> list[str]:
    """A training with few steps, on digits where the images are elsewhere; few samples."""
    fewer = {"10000": "20", "50000": "20", "2000": "9"}
    pairs = zip(["", *words], words, strict=False)  # each word with the one before it
    words = [word if name.startswith("--data") else fewer.get(word, word) for name, word in pairs]
    if words[0] == "evaluate" and "--samples" not in words and "--images" not in words:
        words += ["--samples", "20"]
    if words[0] not in TRAINS:
        return words
    if "cifar10" in words:
        words = ["digits" if each == "cifar10" else each for each in words]
        words += [] if "-o" in words else ["-o", "new-run"]
    if "--budget" in words:
        at = words.index("--budget")
        del words[at : at + 2]
    small: dict[str, Any] = dict(TINY)
    if words[0] == "train-tokenizer" or "--tokenizer" in words:
        small = SMALL_TOKENIZER if words[0] == "train-tokenizer" else SMALL_PRIOR
    elif words[1].startswith("runs/"):
        small = {}
    if words[1] == "folder" and "--data.preprocess" not in words:
        small["data.preprocess"] = {"height": 16, "width": 16}
    if words[1] == "pictures":
        small |= {"data.preprocess.height": 16, "data.preprocess.width": 16}
    return words + [part for name, value in small.items() for part in (f"--{name}", json.dumps(value))]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for name, _ in PYTHON}))
def test_the_python_of_a_document_runs_as_written(name: str, workplace: Path) -> None:
    lora = ["train-prior", "digits", "--codes", "new", "--tokenizer", "runs/digits", "-o", "runs/lora"]
    if name == "FINETUNE.md":
        shutil.copytree(workplace / "runs" / "digits" / "prior", workplace / "imported")
        assert main(shortened([*lora, "--prior.start_from", "imported", "--prior.lora.rank", "2"])) == 0
    found: dict[str, Any] = {}
    for document, code in PYTHON:
        if document == name:
            exec(code, found)
