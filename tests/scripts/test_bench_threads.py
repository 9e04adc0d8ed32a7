"""The benchmark of how OpenMP's threads wait: what it runs, and the table it prints."""

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
from support.tiny_run import ROOT

from foundation.threads import WAITING


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("bench_threads")


def test_what_the_commands_set_is_among_the_settings(bench: ModuleType) -> None:
    assert WAITING in bench.SETTINGS.values() and bench.SETTINGS["default"] == {}
    assert set(bench.QUICK) <= set(bench.SETTINGS)


def test_each_setting_runs_in_a_process_of_its_own_without_the_caller_s_settings(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []

    class Done:
        returncode, stdout = 0, "speed\n12.5\n"

    def run(line: list[str], env: dict[str, str], **_: Any) -> type[Done]:
        assert line[0] == sys.executable and line[line.index("--measure") + 1] == "digits prior"
        seen.append({name: env[name] for name in bench._CLEARED if name in env})
        return Done

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    settings = ["default", "passive", "spin 1,000"]
    figures = bench.bench(["digits prior"], settings, [0], rounds=2, seconds=0.1)
    assert seen == [bench.SETTINGS[each] for each in (*settings, *settings[::-1])]
    assert [(each.setting, each.speed, each.rounds) for each in figures] == [
        (each, 12.5, (12.5, 12.5)) for each in settings
    ]


def test_the_table_compares_each_setting_with_the_first(bench: ModuleType) -> None:
    rows = [("default", 0, 10.0), ("passive", 0, 9.0), ("default", 2, 1.0), ("passive", 2, 8.0)]
    figures = [bench.Figure("digits prior", name, busy, speed, "steps/s", (speed,)) for name, busy, speed in rows]
    heading, default, passive = bench.table(figures).splitlines()
    assert "digits prior, 2 busy" in heading and "10 steps/s (1.00)" in default
    assert "9 steps/s (0.90)" in passive and "8 steps/s (8.00)" in passive


def test_busy_processes_end_with_the_block(bench: ModuleType) -> None:
    ended: list[str] = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            assert command[0] == sys.executable

        def kill(self) -> None:
            ended.append("kill")

        def wait(self) -> None:
            ended.append("wait")

    original, bench.subprocess.Popen = bench.subprocess.Popen, Process
    try:
        with pytest.raises(ValueError, match="stop"), bench.busy_processes(2):
            raise ValueError("stop")
    finally:
        bench.subprocess.Popen = original
    assert ended == ["kill", "wait"] * 2
