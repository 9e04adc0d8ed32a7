"""Told to stop, a training saves within one step on every process and says which signal it was."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from support.crash_points import in_child
from support.small_training import STEPS, Regression, train, weights

from foundation.errors import Interrupted
from foundation.storage import durable
from foundation.training import stop_signal
from foundation.training.checkpoints import latest_checkpoint
from foundation.training.stop_signal import StopSignal

MOMENTS = [
    *(("step", n) for n in range(STEPS)),
    *(("evaluate", n) for n in range(4)),
    *(("save", n) for n in range(2)),
]
"""Of the training: those after its last step are another matter, see below."""


def sender(moment: tuple[str, int], number: int) -> Callable[[str, int], None]:
    def interfere(name: str, count: int) -> None:
        if (name, count) == moment:
            os.kill(os.getpid(), number)

    return interfere


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_saves_within_one_step(tmp_path: Path, number: signal.Signals, keep: Callable) -> None:
    whole = weights(train(tmp_path / "whole", Regression()))
    for i, moment in enumerate(MOMENTS):
        folder, task = tmp_path / str(i), Regression(sender(moment, number))
        with pytest.raises(Interrupted) as caught:
            train(folder, task)
        assert caught.value.signal_number == number and 128 + number in (143, 130)
        found = latest_checkpoint(folder / "checkpoints")
        assert found is not None and found.step == task.steps[-1] + 1, "a step was lost"
        done_before = {"step": moment[1], "evaluate": 3 * moment[1], "save": 4 * moment[1] + 4}[moment[0]]
        assert found.step <= done_before + 1
        assert torch.equal(weights(train(folder, Regression())), whole)
        assert signal.getsignal(number) is not None
    keep("stop signals", moments=len(MOMENTS), **{"steps lost": 0, "resumed to other weights": 0})


def test_a_signal_while_a_checkpoint_is_being_written_tears_nothing(tmp_path: Path) -> None:
    """At every durable operation of the first save."""
    seen = 0
    for nth in range(1, 30):
        with pytest.MonkeyPatch.context() as patch:
            seen = 0
            for name in durable.PRIMITIVES:
                real = getattr(durable, name)

                def operation(*arguments, _real=real, _nth=nth):
                    nonlocal seen
                    seen += 1
                    if seen == _nth and "step-" in str(arguments[0]):
                        os.kill(os.getpid(), signal.SIGTERM)
                    return _real(*arguments)

                patch.setattr(durable, name, operation)
            task = Regression()
            try:
                train(tmp_path / str(nth), task)
            except Interrupted:
                found = latest_checkpoint(tmp_path / str(nth) / "checkpoints")
                assert found is not None and found.step == task.steps[-1] + 1 and not found.skipped


def on_two(folder: Path, moments: list[tuple[str, int]]) -> None:
    """Only one of the two processes gets the signal."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    rank, results = accelerator.process_index, []
    for i, moment in enumerate(moments):
        number = (signal.SIGTERM, signal.SIGINT)[i // 2 % 2]
        task = Regression(sender(moment, number) if rank == i % 2 else lambda *_: None)
        try:
            train(folder / f"{i}", task)
        except Interrupted as stopped:
            results.append((stopped.signal_number, task.steps[-1] + 1))
    (folder / f"results-{rank}.json").write_text(json.dumps(results))


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Callable
) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    rng = random.Random(0)
    moments = [rng.choice(MOMENTS) for _ in range(20)]
    debug_launcher(on_two, (tmp_path, moments), num_processes=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    one, other = (json.loads((tmp_path / f"results-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other and len(one) == 20
    for i, (number, step) in enumerate(one):
        found = latest_checkpoint(tmp_path / f"{i}" / "checkpoints")
        assert found is not None and found.step == step
        assert number == (signal.SIGTERM, signal.SIGINT)[i // 2 % 2]
    keep("stop signals", **{"moments on one of two processes": 20, "hangs": 0, "steps lost": 0})


@pytest.mark.parametrize("moment", [("save", 2), ("evaluate", 4)])
def test_a_signal_after_the_last_step_is_not_forgotten(tmp_path: Path, moment: tuple[str, int]) -> None:
    """Else a run that was stopped goes on to its next stage."""
    with pytest.raises(Interrupted):
        train(tmp_path, Regression(sender(moment, signal.SIGTERM)))
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.step == STEPS


def twice(pause: float, number: int) -> None:
    stop_signal.REPEAT_SECONDS = 0.1
    with StopSignal() as stop:
        os.kill(os.getpid(), number)
        assert stop.number == number
        time.sleep(pause)
        os.kill(os.getpid(), number)
        assert stop.number == number


def test_a_second_signal_acts_at_once_unless_it_is_the_same_request(keep: Callable) -> None:
    """Ctrl-C reaches every process from the terminal, and again from the launcher above it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
        try:
            assert in_child(lambda number=number: twice(0.0, number)) == 0
            assert in_child(lambda number=number: twice(0.3, number)) == -number
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    keep("stop signals", **{"a second signal": "acts at once after 2 s"})


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
