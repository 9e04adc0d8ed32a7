"""Threads: waiting, counts, and the pool of the images."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.tiny_run import ROOT

from foundation import threads
from foundation.hardware import usable_cores
from foundation.threads import WAITING, image_threads, map_in_threads, prepare_openmp, waiting_text

NAMES = (*threads._HOW_THEY_WAIT, *threads._HOW_MANY, "LOCAL_WORLD_SIZE")
SEEN_BY = """
import os, subprocess, sys
from pipeline import cli

cli._dispatch(["recipes"])
assert "torch" not in sys.modules
code = "import os, torch; print(torch.get_num_threads(), os.environ.get('OMP_WAIT_POLICY'))"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout, file=sys.stderr)
"""


def environment(**settings: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name not in NAMES}, **settings}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that has not loaded torch, whose user set nothing."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads.os, "environ", environment())
    monkeypatch.setattr(threads, "allowed_cores", lambda: 8)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    return monkeypatch


def test_the_commands_set_how_threads_wait_before_torch_is_loaded_and_child_processes_inherit_it() -> None:
    line = [sys.executable, "-c", SEEN_BY]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT, env=environment())
    assert done.stderr.split() == [str(usable_cores()), WAITING["OMP_WAIT_POLICY"]]


@pytest.mark.parametrize("name", threads._HOW_THEY_WAIT)
def test_what_the_user_set_stays(fresh: pytest.MonkeyPatch, name: str) -> None:
    threads.os.environ[name] = "1"
    assert prepare_openmp()
    assert {each: os.environ[each] for each in threads._HOW_THEY_WAIT if each in os.environ} == {name: "1"}
    assert waiting_text() == f"{name}=1"


def test_nothing_is_set_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "environ", environment())
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert not prepare_openmp() and threads.os.environ == environment()
    assert "default" in waiting_text()


def test_threads_are_counted_only_where_the_cores_are_shared(fresh: pytest.MonkeyPatch) -> None:
    assert prepare_openmp() and "OMP_NUM_THREADS" not in threads.os.environ
    fresh.setattr(threads, "usable_cores", lambda: 3)
    assert prepare_openmp() and threads.os.environ["OMP_NUM_THREADS"] == "3"
    threads.os.environ["OMP_NUM_THREADS"] = "5"
    assert prepare_openmp() and threads.os.environ["OMP_NUM_THREADS"] == "5"


def test_the_image_threads_are_one_pool_of_as_many_as_there_are_usable_cores() -> None:
    names = map_in_threads(lambda _: threading.current_thread().name, range(200))
    assert image_threads() is image_threads() and len(set(names)) <= usable_cores()
    assert set(names) <= {f"images_{i}" for i in range(usable_cores())}


def test_results_come_in_order_and_an_error_waits_for_the_calls_that_run() -> None:
    assert map_in_threads(lambda i: i * i, range(50)) == [i * i for i in range(50)]
    running: set[int] = set()

    def work(i: int) -> None:
        if i == 0:
            raise ValueError("the first")
        running.add(i)
        threading.Event().wait(0.01)
        running.remove(i)

    with pytest.raises(ValueError, match="the first"):
        map_in_threads(work, range(1000))
    assert not running


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_makes_its_own_threads() -> None:
    code = """
import os, sys
from foundation.threads import map_in_threads

map_in_threads(abs, range(9))
child = os.fork()
if child == 0:
    os._exit(map_in_threads(abs, range(9)) != [*range(9)])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    line = [sys.executable, "-c", code]
    assert subprocess.run(line, check=False, cwd=Path(ROOT), timeout=60).returncode == 0
