"""docs/tutorial.ipynb has the cells of docs/TUTORIAL.md, was executed, and its steps run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image
from support.tiny_run import ROOT, TINY

from pipeline.cli import main
from scripts.write_tutorial import NOTEBOOK, TEXT, TIMES, notebook_of, run, tidied, times_table

SMALL = {**TINY, "data.preprocess": {"height": 16, "width": 16}}


def test_the_notebook_has_the_cells_of_the_text_and_was_run() -> None:
    kept = nbformat.read(NOTEBOOK, 4)
    assert NOTEBOOK.stat().st_size < 1_000_000
    assert [each.source for each in kept.cells] == [
        each.source for each in notebook_of(TEXT.read_text(encoding="utf-8")).cells
    ]
    outputs = [each.outputs for each in kept.cells if each.cell_type == "code"]
    assert all(outputs) and not any(each.output_type == "error" for found in outputs for each in found)
    steps = re.findall(r"^\| (\d+\. .*) \| .*\d s \|$", TEXT.read_text(encoding="utf-8").split(TIMES)[1], re.MULTILINE)
    headings = re.findall(r"^## (\d+\. .*)$", TEXT.read_text(encoding="utf-8"), re.MULTILINE)
    assert steps == [each for each in headings if "page" not in each]


def test_the_steps_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("crystal_small", reason="pip install crystal-small brings the icons of the tutorial")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", TEXT.read_text(encoding="utf-8"), re.DOTALL):
        if language == "python":
            exec(code, found)
            continue
        for line in code.splitlines():
            assert (icons() if "icons.py" in line else main(shortened(line))) == 0, line
    assert len(list(Path("icons").glob("*/*.png"))) > 700 and len(found["out"].images) == 8
    assert np.asarray(Image.open("first.png")).ndim == 3 and Path("to-upload/README.md").is_file()
    assert list(Path("drawn").glob("*.png")) and list(Path("completed").glob("*.png"))


def icons() -> int:
    """``python scripts/icons.py icons``."""
    return subprocess.run([sys.executable, ROOT / "scripts" / "icons.py", "icons"], check=False).returncode


def shortened(line: str) -> list[str]:
    """Trainings with few steps and few samples; few pictures to complete."""
    words = [each for word in shlex.split(line)[1:] for each in (sorted(map(str, Path().glob(word)))[:2] or [word])]
    words = ["20" if each == "500" else each for each in words]
    if words[0] == "run":
        at = words.index("--budget")
        words[at : at + 2] = [part for name, value in SMALL.items() for part in (f"--{name}", json.dumps(value))]
    return words


@pytest.mark.slow
def test_cells_are_executed_with_their_times(tmp_path: Path) -> None:
    text = (
        f"# A\n\n## 1. One\n\n```bash\necho one; printf '10%%\\r20%%\\n' >&2\n```\n\n```python\n2 + 3\n```\n\n{TIMES}\n"
    )
    notebook = notebook_of(text)
    steps = run(notebook, tmp_path)
    (heading, seconds), cells = steps[0], [each for each in tidied(notebook).cells if each.cell_type == "code"]
    assert heading == "1. One" and seconds > 0 and "| 1. One | " in times_table(steps)
    assert [sorted(each.text.split()) for each in cells[0].outputs] == [["20%", "one"]]
    assert cells[1].outputs[0].data["text/plain"] == "5"
