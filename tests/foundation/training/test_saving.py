"""Saves beside training: whole, of the moment they were asked for, waited for where it matters, loud when they fail."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from support.crash_points import tree
from support.small_training import STEPS, Regression, train, weights

from foundation.errors import Interrupted, StorageError, TrainingError
from foundation.storage import durable
from foundation.training.checkpoints import CheckpointManager, latest_checkpoint, save_checkpoint
from foundation.training.lengths import Schedule
from foundation.training.saving import BackgroundSave, Snapshot, first_not_finite, named_tensors

STATE = {
    "model": {"w": torch.arange(6.0).view(2, 3).t(), "flags": torch.tensor([True, False]), "n": torch.tensor(3)},
    "optimizer": {"state": {0: {"m": torch.ones(3, dtype=torch.bfloat16)}}, "groups": [{"lr": 0.1, "ids": (0, 1)}]},
    "none": None,
}


class Gate:
    """Holds every write until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        real = durable._write

        def write(path: Path, inner: Callable[[Path], None]) -> None:
            self.reached.set()
            assert self.open.wait(60)
            real(path, inner)

        patch.setattr(durable, "_write", write)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def manager(folder: Path, task: Any) -> CheckpointManager:
    return CheckpointManager(task, folder, lambda steps: {}, Schedule(STEPS, ()), Accelerator(cpu=True), 6, 2)


def test_a_snapshot_is_the_state_in_memory_of_its_own_that_is_used_again() -> None:
    snapshot = Snapshot()
    first = snapshot.take(STATE)
    theirs, ours = dict(named_tensors(STATE)), dict(named_tensors(first))
    assert theirs.keys() == ours.keys() and first["none"] is None
    assert first["optimizer"]["groups"] == [{"lr": 0.1, "ids": [0, 1]}]
    for name, each in theirs.items():
        assert torch.equal(each, ours[name]) and each.dtype == ours[name].dtype and ours[name].is_contiguous()
        assert each.data_ptr() != ours[name].data_ptr()
    second = dict(named_tensors(snapshot.take({**STATE, "model": {"w": torch.zeros(3, 2), "n": torch.zeros(9)}})))
    assert second["model/w"].data_ptr() == ours["model/w"].data_ptr() and second["model/w"].sum() == 0
    assert second["model/n"].shape == (9,) and "model/flags" not in second


def test_a_checkpoint_holds_the_state_of_its_step_while_training_goes_on(tmp_path: Path, gate: Gate) -> None:
    task = Regression()
    before = {name: each.clone() for name, each in named_tensors(task.state_dict())}
    with manager(tmp_path, task) as saving:
        saving.save(1)
        assert gate.reached.wait(60) and latest_checkpoint(tmp_path) is None, "the loop goes on before it is written"
        with torch.no_grad():
            for _, each in named_tensors(task.state_dict()):
                each.fill_(7)
        gate.open.set()
        saving.wait()
        assert latest_checkpoint(tmp_path) is not None
    found = latest_checkpoint(tmp_path)
    assert found is not None
    saved = dict(named_tensors(found.state["task"]))
    assert saved.keys() == before.keys() and all(torch.equal(saved[name], each) for name, each in before.items())


def test_a_save_in_the_background_writes_the_bytes_of_one_that_is_waited_for(tmp_path: Path) -> None:
    task = Regression()
    with manager(tmp_path / "background", task) as saving:
        for step in (1, 2, 3):
            saving.save(step)
    for step in (1, 2, 3):
        content = {"identity": {}, "samples_seen": 6 * step, "task": task.state_dict()}
        save_checkpoint(tmp_path / "waited", step, content, length=STEPS)
    assert tree(tmp_path / "background") == tree(tmp_path / "waited")


def test_the_next_save_and_the_end_wait_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    with manager(tmp_path, Regression()) as saving:
        saving.save(1)
        assert gate.reached.wait(60)
        threading.Timer(0.2, gate.open.set).start()
        saving.save(2)
        assert (tmp_path / "step-00000001").is_dir()
    assert (tmp_path / "step-00000002").is_dir()


def test_what_was_verified_here_is_not_read_again_unless_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = durable.file_sha256
    monkeypatch.setattr(durable, "file_sha256", lambda path: (read.append(path.name), real(path))[1])
    with manager(tmp_path, Regression()) as saving:
        for step in (1, 2, 3):
            saving.save(step)
        saving.wait()
        assert read.count("state.safetensors") == 3, "each once, when it was written"
        (tmp_path / "step-00000002" / "state.json").write_bytes(b"damaged")
        saving.save(4)
        saving.wait()
        assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_an_older_damaged_checkpoint_does_not_count_as_sound(tmp_path: Path) -> None:
    with manager(tmp_path, Regression()) as saving:
        for step in (1, 2):
            saving.save(step)
        saving.wait()
        (tmp_path / "step-00000002" / "state.json").write_bytes(b"damaged")
        saving.save(3)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["step-00000001", "step-00000002", "step-00000003"], "with 1 there are two sound ones"


def refuse(path: Path, inner: Callable[[Path], None]) -> None:
    if path.name == "state.safetensors" and "00000008" in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    inner(path)


def test_an_error_of_the_thread_stops_the_training_at_a_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(train(tmp_path / "whole", Regression()))
    task = Regression()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "_write", refuse)
        with pytest.raises(StorageError, match="the disk is full"):
            train(tmp_path / "run", task)
    assert task.steps[-1] < STEPS, "it does not train on to the end"
    assert [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert torch.equal(weights(train(tmp_path / "run", Regression())), whole)


def test_an_error_of_the_thread_keeps_nothing_of_the_training_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock of the run folder, which ends with its owner, would outlive the run."""
    monkeypatch.setattr(durable, "_write", refuse)

    class Owner:
        pass

    def fail() -> weakref.ref:
        owner = Owner()
        try:
            train(tmp_path, Regression(lambda *_, held=owner: None))
        except StorageError:
            return weakref.ref(owner)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_another_error_of_the_training_waits_for_the_save_and_names_its_failure(
    tmp_path: Path, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    threading.Timer(0.2, gate.open.set).start()
    with pytest.raises(KeyError), manager(tmp_path / "whole", Regression()) as saving:
        saving.save(1)
        raise KeyError
    assert latest_checkpoint(tmp_path / "whole") is not None
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(KeyError), manager(tmp_path / "file", Regression()) as saving:
        saving.save(1)
        raise KeyError
    assert "the last checkpoint could not be saved" in capsys.readouterr().out


def test_a_stop_signal_waits_until_the_checkpoint_is_on_disk(tmp_path: Path, gate: Gate) -> None:
    def interfere(name: str, count: int) -> None:
        if (name, count) == ("step", 1):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.3, gate.open.set).start()

    with pytest.raises(Interrupted):
        train(tmp_path, Regression(interfere))
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.step == 2 and gate.open.is_set()
    assert not [each for each in threading.enumerate() if each.name.startswith("checkpoint")]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_is_found_among_all_types(value: float) -> None:
    state = {**STATE, "empty": torch.zeros(0), "large": torch.tensor([3e38, -3e38]), "half": torch.ones(5).half()}
    assert first_not_finite(state) is None
    for name in ("w", "m"):
        part = {"w": torch.ones(3, 3), "m": torch.ones(4, dtype=torch.bfloat16)}
        part[name].view(-1)[-1] = value
        assert first_not_finite({**state, "part": part}) == f"part/{name}"


def on_two(folder: Path) -> None:
    """Two processes: a save goes on beside both; its error reaches both; a state of one process restores on two."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    rank, said = Accelerator(cpu=True).process_index, []
    whole = weights(train(folder / "whole", Regression()))
    torch.save(whole, folder / f"whole-{rank}.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "_write", refuse)
        try:
            train(folder / "run", Regression())
        except StorageError as error:
            said.append(str(error).splitlines()[0])
    again = Regression()
    assert torch.equal(weights(train(folder / "run", again)), whole) and again.steps[0] == 4
    (folder / f"said-{rank}").write_text("".join(said), encoding="utf-8")


def test_two_processes_save_beside_training_fail_alike_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    debug_launcher(on_two, (tmp_path,), num_processes=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.equal(*(torch.load(tmp_path / f"whole-{rank}.pt", weights_only=True) for rank in (0, 1)))
    assert "the disk is full" in (tmp_path / "said-0").read_text(encoding="utf-8")
    assert "process 0 could not save" in (tmp_path / "said-1").read_text(encoding="utf-8")


def test_a_save_without_an_end_is_not_reported_as_one() -> None:
    going_on, saving = threading.Event(), BackgroundSave(Accelerator(cpu=True))
    saving.begin({"x": torch.ones(2)}, lambda copied: going_on.wait(60) and None)
    saving.settle(wait=False)
    going_on.set()
    saving.settle(wait=True)
    assert saving.close() is None


def test_nothing_is_written_of_a_state_that_is_not_finite(tmp_path: Path) -> None:
    task = Regression()
    with torch.no_grad():
        next(task.learner.model.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="model/"), manager(tmp_path, task) as saving:
        saving.save(1)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_copy_from_a_gpu_holds_what_was_there_when_it_was_asked_for() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    snapshot, state = Snapshot(), {"w": torch.ones(50_000_000, device="cuda"), "step": torch.tensor(3.0)}
    for value in (1.0, 2.0):
        state["w"].fill_(value)
        copied = snapshot.take(state)
        state["w"].fill_(9.0)
        snapshot.wait()
        assert copied["w"].is_pinned() and copied["w"].min() == copied["w"].max() == value and copied["step"] == 3
    assert first_not_finite(state) is None
    state["w"][-1] = torch.nan
    assert first_not_finite(state) == "w"
