"""A process that has ended or hangs is named by the others in time; one that works long is waited for."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, InitProcessGroupKwargs, debug_launcher
from accelerate.state import AcceleratorState
from support.small_training import Regression, train

from foundation.errors import ConfigError, TrainingError
from foundation.training import heartbeat as heartbeats
from foundation.training.heartbeat import VARIABLE, doing, heartbeat, process_timeout, wait_for_everyone

SECONDS = 3.0


def launch(monkeypatch: pytest.MonkeyPatch, child: Callable[[Path], None], folder: Path) -> None:
    """Run a function on two processes whose silence is noticed after ``SECONDS``."""
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    monkeypatch.setitem(os.environ, VARIABLE, str(SECONDS))
    debug_launcher(child, (folder,), num_processes=2)
    AcceleratorState._reset_state(reset_partial_state=True)


def processes() -> Accelerator:
    """The accelerator of one of two processes."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=process_timeout())])
    heartbeat(accelerator)
    return accelerator


def _works_long_and_ends(folder: Path) -> None:
    """Process 0 works longer than the limit; then process 1 ends in a training without a word."""
    accelerator = processes()
    heartbeats.SAY_SECONDS = 1.0
    if accelerator.is_main_process:
        doing(accelerator, "listing the images")
        time.sleep(1.5 * SECONDS)
        (folder / "worked").touch()
    with (folder / f"said-{accelerator.process_index}").open("w") as said, contextlib.redirect_stderr(said):
        wait_for_everyone(accelerator)
    assert (folder / "worked").exists()

    def end_at_step_4(name: str, n: int) -> None:
        if (name, n) == ("step", 4) and not accelerator.is_main_process:
            time.sleep(SECONDS / 2)  # its key says where it is
            os._exit(0)  # code 0: the launcher does not end process 0

    began = time.monotonic()
    with pytest.raises(TrainingError, match=r"process 1 ended or hangs, last heard at step 4 of toy") as told:
        train(folder, Regression(end_at_step_4))
    assert "process 0, at step 4 of toy" in str(told.value) and time.monotonic() - began < 60
    (folder / "told").touch()
    os._exit(0)  # without the others no orderly end


def test_long_work_is_waited_for_and_a_process_that_ends_is_named_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, _works_long_and_ends, tmp_path)
    assert (tmp_path / "told").exists()
    said = (tmp_path / "said-1").read_text()
    assert "for process 0 (listing the images); here at the start" in said and VARIABLE in said
    assert not (tmp_path / "said-0").read_text(), "the one that is waited for"


def _hangs(folder: Path) -> None:
    """Process 1 is stopped before it comes to where process 0 waits for it."""
    accelerator = processes()
    wait_for_everyone(accelerator)
    if not accelerator.is_main_process:
        (folder / "pid.tmp").write_text(str(os.getpid()))
        (folder / "pid.tmp").rename(folder / "pid")
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    while not (folder / "pid").exists():
        time.sleep(0.01)
    with pytest.raises(TrainingError, match="process 1 ended or hangs"):
        wait_for_everyone(accelerator)
    os.kill(int((folder / "pid").read_text()), signal.SIGCONT)
    (folder / "told").touch()


def test_a_process_that_hangs_is_named_by_one_that_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, _hangs, tmp_path)
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_limit_that_is_no_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=VARIABLE):
        process_timeout()


def test_one_process_waits_for_nobody() -> None:
    wait_for_everyone(Accelerator(cpu=True))
