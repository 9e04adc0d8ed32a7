"""Temporary names belong to a process; portable names are those that every system can have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.other_systems import System, linux, macos, windows

from foundation.storage import names
from foundation.storage.names import FOREIGN_SECONDS, is_left_behind, is_portable, is_temporary, temporary_name


@pytest.mark.parametrize(
    "name", ["a", "CONSOLE", "con-1.png", "a b", "\u00fc", ".packed", "nul_", "com10", "com", "x" * 255]
)
def test_names_that_every_system_can_have(name: str) -> None:
    assert is_portable(name)


@pytest.mark.parametrize(
    "name",
    [
        *["", "CON", "nul", "aux.png", "Com1", "LPT9.tar.gz", "con .txt", "a.", "a ", "..", "a:b", "a\\b", "a/b", "a?"],
        *["a*", '"a"', "a<b", "a|b", "a\nb", "a\0", "x" * 256, "\u540d" * 86],
    ],
)
def test_names_that_some_system_cannot_have(name: str) -> None:
    assert not is_portable(name)


@pytest.mark.parametrize("system", [linux, windows, macos])
def test_a_process_knows_its_own_names_and_those_of_dead_ones(system: System, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with system():
        mine = temporary_name(tmp_path / "a")
        mark, host, _, _, unique, *name = mine.name.split("-")
        started = names._started(child.pid)
        assert started is not None and started == names._started(child.pid)
        theirs = Path("-".join([mark, host, str(child.pid), str(started), unique, *name]))
        earlier = Path("-".join([mark, host, str(child.pid), str(started - 1), unique, *name]))
        assert not is_left_behind(mine) and not is_left_behind(theirs)
        assert is_left_behind(earlier), "its number was given again"
        child.communicate(b"\n")
        assert is_left_behind(theirs)


def test_names_are_new_each_time_beside_the_final_one_and_match_no_final_pattern(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    names = {temporary_name(path) for _ in range(20)}
    assert len(names) == 20
    for name in names:
        name.touch()
        assert is_temporary(name) and name.parent == tmp_path
    assert not is_temporary(path) and not list(tmp_path.glob("*.parquet"))


def test_a_living_process_s_file_stays_and_a_dead_one_s_is_left_behind(tmp_path: Path) -> None:
    mine = temporary_name(tmp_path / "a")
    code = "import sys, pathlib, foundation.storage.durable as t; print(t.temporary_name(pathlib.Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    theirs = Path(done.stdout.strip())
    assert not is_left_behind(mine)
    assert is_temporary(theirs) and is_left_behind(theirs)


def test_a_number_that_another_process_got_since_is_not_its_owner() -> None:
    mark, host, pid, _, unique, *name = temporary_name(Path("a")).name.split("-")
    assert is_left_behind(Path("-".join([mark, host, pid, "1", unique, *name])))


def test_a_file_from_another_machine_is_left_behind_after_a_day_without_a_change(tmp_path: Path) -> None:
    mark, _, pid, started, *rest = temporary_name(Path("a")).name.split("-")
    folder = tmp_path / "-".join([mark, "0" * 12, pid, started, *rest])
    (folder / "inner").mkdir(parents=True)
    assert not is_left_behind(folder)
    old = folder.stat().st_mtime - FOREIGN_SECONDS - 60
    os.utime(folder, (old, old))
    assert not is_left_behind(folder), "something in it is new"
    os.utime(folder / "inner", (old, old))
    assert is_left_behind(folder)
