"""Imports flow down: scripts -> pipeline -> {stage1_tokenizer, stage2_prior} -> foundation."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOOR = {"foundation": 0, "stage1_tokenizer": 1, "stage2_prior": 1, "pipeline": 2, "scripts": 3}


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_imports_flow_down() -> None:
    files = [(here, path) for here in FLOOR for path in (ROOT / here).rglob("*.py")]
    assert len(files) > 40
    wrong = [
        f"{path.relative_to(ROOT)} imports {there}: {here} may not import {there}"
        for here, path in files
        for there in imported_packages(path)
        if there in FLOOR and there != here and FLOOR[there] >= FLOOR[here]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_a_drawer_for_everything() -> None:
    names = {path.stem for here in FLOOR for path in (ROOT / here).rglob("*.py")}
    assert not names & {"utils", "util", "misc", "helpers", "common"}


def test_importing_the_packages_and_the_command_line_does_not_import_torch() -> None:
    code = (
        "import sys, foundation, stage1_tokenizer, stage2_prior, pipeline, pipeline.cli;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_generating_does_not_import_transformers() -> None:
    code = (
        "import sys, pipeline.generation.generator;"
        "print(sorted({'transformers', 'accelerate', 'datasets', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
