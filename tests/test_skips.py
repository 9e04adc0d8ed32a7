"""A test run ends with its skips, counted by reason."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from support.skips import needs_unix, skips_by_reason
from support.tiny_run import ROOT


def skipped(nodeid: str, reason: str) -> SimpleNamespace:
    return SimpleNamespace(nodeid=nodeid, longrepr=(nodeid.partition("::")[0], 3, f"Skipped: {reason}"))


def test_reasons_are_counted_over_files_and_whole_files_are_named() -> None:
    assert skips_by_reason([]) == ["no test was skipped"]
    reports = [skipped("a.py::one", "no GPU"), skipped("a.py::two", "no GPU"), skipped("b.py::one", "no GPU")]
    lines = skips_by_reason([skipped("c.py", "no fork"), *reports])
    assert lines[0].startswith("4 tests skipped in 3 files")
    assert lines[1:] == [
        "     3 in 2 files: no GPU",
        "     1 in 1 file: no fork",
        "  whole files, each counted as one: c.py",
    ]


def test_files_that_windows_cannot_run_are_known_by_what_they_use() -> None:
    assert needs_unix("pid = os.fork()") and needs_unix("from support.crash_points import tree")
    assert not needs_unix("import os\nPath('a').write_bytes(b'')")


def test_a_run_ends_with_them(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text("import pytest\n@pytest.mark.parametrize('i', range(3))\ndef test_it(i): pytest.skip('no moon')\n")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c"]
    line += [str(ROOT / "pyproject.toml"), "-p", "conftest", str(test)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT / "tests")
    assert "3 tests skipped in 1 file" in done.stdout, done.stdout + done.stderr
    assert "   3 in 1 file: no moon" in done.stdout
