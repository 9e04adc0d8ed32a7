"""Imports flow down: between the packages, between the rooms inside them, and never in a circle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_run import ROOT

from scripts.measure_house import circles, import_graph

PACKAGES = {"foundation": 0, "stage1_tokenizer": 1, "stage2_prior": 1, "pipeline": 2, "scripts": 3}
ROOMS = {
    "foundation": [
        ["errors", "randomness"],
        ["paths", "yaml_text"],
        ["arguments", "config", "storage", "unpickling"],
        ["config_fields", "hardware"],
        ["threads"],
        ["features", "hub", "images", "training"],
        ["codes"],
    ],
    "pipeline": [
        ["output_files"],
        ["work_sharing", "image_files"],
        ["engines"],
        ["encoding", "generation"],
        ["runs"],
        ["interop", "evaluation", "planning"],
        ["report", "app"],
        ["commands"],
        ["cli"],
    ],
}
"""Rooms of a package from the ground floor up; rooms on one floor do not import one another."""


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_imports_flow_down_between_packages() -> None:
    files = [(here, path) for here in PACKAGES for path in (ROOT / here).rglob("*.py")]
    assert len(files) > 40
    wrong = [
        f"{path.relative_to(ROOT)} imports {there}: {here} may not import {there}"
        for here, path in files
        for there in imported_packages(path)
        if there in PACKAGES and there != here and PACKAGES[there] >= PACKAGES[here]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ROOMS)
def test_imports_flow_down_between_the_rooms_of_a_package(package: str) -> None:
    floor_of = {room: floor for floor, rooms in enumerate(ROOMS[package]) for room in rooms}
    graph = {name: seen for name, seen in import_graph(ROOT).items() if name.startswith(f"{package}.")}
    homeless = sorted({name for name in graph if name.split(".")[1] not in floor_of})
    assert not homeless, f"in no room of {package}: {homeless}"
    wrong = [
        f"{here} imports {there}"
        for here, seen in graph.items()
        for there in sorted(seen)
        if there.startswith(f"{package}.")
        and here.split(".")[1] != there.split(".")[1]
        and floor_of[there.split(".")[1]] >= floor_of[here.split(".")[1]]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_one_another_in_a_circle() -> None:
    graph = import_graph(ROOT)
    assert len(graph) > 100
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_file_is_a_drawer_for_everything() -> None:
    names = {path.stem for here in PACKAGES for path in (ROOT / here).rglob("*.py")}
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
