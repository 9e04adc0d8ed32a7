"""What docs/COOKBOOK.md says works: its commands and its Python run in order, as written."""

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

from pipeline.cli import main

TEXT = (ROOT / "docs" / "COOKBOOK.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, re.DOTALL)
SMALL = {name: value for name, value in TINY.items() if "data." not in name}
"""Options that make a training of the cookbook short."""


def test_everything_runs_in_order(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, tmp_path / "runs" / "digits")
    found: dict[str, Any] = {}
    for language, code in BLOCKS:
        if language == "python":
            found = {}
            exec(code.replace("range(200)", "range(3)"), found)
            continue
        for line in code.splitlines():
            assert main(shortened(shlex.split(line)[1:])) == 0, line
    assert np.asarray(Image.open("llama.png")).std() > 0 and len(found["bits"]) == 2
    assert Path("exported/decoder.onnx").is_file() and Path("for-diffusers/config.json").is_file()
    assert Path("runs/shapes/report.html").is_file() and Path("runs/longer/tokenizer").is_dir()


def shortened(arguments: list[str]) -> list[str]:
    """A training of the cookbook with few steps; diffusers gets codes that it knows; any other command as it is."""
    if arguments[0] == "export-diffusers":
        learned = {**TINY["tokenizer.model"], "quantizer": {"type": "vq", "codebook_size": 32}}
        fields = {**SMALL, "tokenizer.model": learned}
        words = [
            word
            for name, value in fields.items()
            if name.startswith("tokenizer")
            for word in (f"--{name}", json.dumps(value))
        ]
        assert main(["train-tokenizer", "digits", "-o", "runs/vq", *words]) == 0
        return ["runs/vq" if word == "runs/digits" else word for word in arguments]
    if arguments[0] not in ("run", "train-tokenizer"):
        return arguments
    given = [word for word in arguments if word != "2m" and word != "--budget"]
    fields = {name: value for name, value in SMALL.items() if f"--{name}" not in given}
    if arguments[0] == "train-tokenizer":
        fields = {name: value for name, value in fields.items() if name.startswith("tokenizer.training")}
    return given + [word for name, value in fields.items() for word in (f"--{name}", json.dumps(value))]
