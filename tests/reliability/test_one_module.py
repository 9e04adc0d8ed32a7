"""Every durable operation goes through ``foundation.storage.durable``, where the crash tests can stop it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("foundation", "stage1_tokenizer", "stage2_prior", "pipeline")
PUBLISHING = {"rename", "renames", "link", "symlink", "fsync", "fdatasync", "truncate", "mkfifo"}
"""functions of ``os`` and methods of paths that give a file its name, or flush it"""
MOVING = {"move", "rmtree"}
"""functions of ``shutil``"""
WRITING = {"write_text", "write_bytes", "save_file"}
ELSEWHERE = {
    "foundation/codes/packed.py": "appends columns to files whose SHA-256 it compares before they are published",
    "foundation/storage/remote/transfer.py": "writes blocks of a file whose size it compares before it is published",
}
"""files of the ground floor that write otherwise, and why nothing is lost by it"""


def calls(path: Path) -> Iterator[tuple[str, str, int]]:
    """(owner, function, line) of each call: ("os", "rename", 7), ("", "save_file", 9), ("x", "write_text", 3)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else "?"
                yield owner, function.attr, node.lineno
            elif isinstance(function, ast.Name):
                mode = [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
                writes = function.id == "open" and mode and set(str(mode[0])) & set("wax+")
                yield "", "open to write" if writes else function.id, node.lineno


def sources() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name != "foundation/storage/durable.py":
                yield name, path


def test_names_are_given_and_flushed_in_one_module_only() -> None:
    wrong = [
        f"{name}:{line} calls {owner}.{function}"
        for name, path in sources()
        for owner, function, line in calls(path)
        if (function in PUBLISHING and owner != "durable")
        or (function in MOVING and owner == "shutil")
        or (function == "replace" and owner == "os")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_ground_floor_writes_through_it_only() -> None:
    wrong = [
        f"{name}:{line} {function}"
        for name, path in sources()
        if name.startswith("foundation/") and name not in ELSEWHERE
        for owner, function, line in calls(path)
        if (function in WRITING and owner != "durable") or function == "open to write"
    ]
    assert not wrong, "\n".join(wrong)
    assert all((ROOT / name).exists() for name in ELSEWHERE)


def test_the_search_sees_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import os\nos.rename(a, b)\nx.write_text('')\nopen(p, 'wb')\nopen(p)\nsave_file(t, p)\n"
    )
    found = {(owner, function) for owner, function, _ in calls(tmp_path / "a.py")}
    assert {("os", "rename"), ("x", "write_text"), ("", "open to write"), ("", "open"), ("", "save_file")} <= found
