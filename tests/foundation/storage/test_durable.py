"""Publishing is all or nothing, wherever the process stops."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from foundation.errors import StorageError
from foundation.storage import durable
from foundation.storage.durable import FOREIGN_SECONDS, is_left_behind, is_temporary, temporary_name
from foundation.training.checkpoints import latest_checkpoint, save_checkpoint

PRIMITIVES = ("_fsync", "_link", "_rename", "_unlink", "write_bytes")


class Stop(BaseException):
    """Stands for the process dying: nothing catches it."""


def stop_at(monkeypatch: pytest.MonkeyPatch, nth: int, error: BaseException) -> Callable[[], int]:
    """Make the nth primitive operation from now on raise; returns a counter of operations seen."""
    seen = 0
    for name in PRIMITIVES:
        real = getattr(durable, name)

        def wrapped(*args: object, _real: Callable = real, _name: str = name) -> None:
            nonlocal seen
            seen += 1
            if seen == nth:
                raise error
            if seen > nth and isinstance(error, Stop):
                return  # a dead process does nothing more
            _real(*args)

        monkeypatch.setattr(durable, name, wrapped)
    return lambda: seen


def publish(path: Path, content: bytes) -> None:
    durable.publish_file(path, lambda temporary: durable.write_bytes(temporary, content))


def visible(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir() if not each.name.startswith(".tmp-")}


@pytest.mark.parametrize("failure", [Stop(), OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "I/O error")])
def test_a_file_is_absent_or_whole_at_every_operation(tmp_path: Path, failure: BaseException) -> None:
    for nth in range(1, 20):
        folder = tmp_path / f"{nth}"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            count = stop_at(patch, nth, failure)
            try:
                publish(folder / "a", b"whole content")
            except (Stop, StorageError):
                pass
            reached = count() >= nth
        assert visible(folder) in ({}, {"a": b"whole content"})
        publish(folder / "a", b"whole content")  # doing it again succeeds
        assert visible(folder) == {"a": b"whole content"}
        with pytest.MonkeyPatch.context() as patch:  # as another process sees it once this one is dead
            patch.setattr(durable, "is_left_behind", lambda path: True)
            durable.sweep(folder)
        assert len(list(folder.iterdir())) == 1
        if not reached:
            assert nth > 4
            return
    raise AssertionError("the operations were never exhausted")


def test_a_checkpoint_survives_a_stop_at_every_operation_of_the_next(tmp_path: Path) -> None:
    import torch

    def state(step: int) -> dict:
        return {"weights": torch.full((4,), float(step)), "step": step}

    for nth in range(1, 60):
        root = tmp_path / f"{nth}"
        save_checkpoint(root, 1, state(1), keep=1)
        with pytest.MonkeyPatch.context() as patch:
            count = stop_at(patch, nth, Stop())
            try:
                save_checkpoint(root, 2, state(2), keep=1)
            except Stop:
                pass
            reached = count() >= nth
        found = latest_checkpoint(root)
        assert found is not None
        assert found.state["step"] == found.step
        assert torch.equal(found.state["weights"], torch.full((4,), float(found.step)))
        if not reached:
            assert found.step == 2
            assert nth > 8
            return
    raise AssertionError("the operations were never exhausted")


def test_the_first_writer_wins_and_another_content_is_loud(tmp_path: Path) -> None:
    publish(tmp_path / "a", b"one")
    publish(tmp_path / "a", b"one")
    with pytest.raises(StorageError, match="exists already with other content"):
        publish(tmp_path / "a", b"two")
    assert visible(tmp_path) == {"a": b"one"}


def test_a_full_disk_names_the_file_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "write_bytes", full)
    with pytest.raises(StorageError) as caught:
        durable.replace_file(tmp_path / "report.html", b"x")
    for fragment in ("report.html", "the disk is full", "free some space", "untouched"):
        assert fragment in str(caught.value)
    with pytest.raises(StorageError, match="at least"):
        durable.require_free_space(tmp_path / "not" / "yet", 2**60, "the token dataset")


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    durable.publish_folder(tmp_path / "a", lambda folder: durable.write_bytes(folder / "x", b"1"))
    with pytest.raises(StorageError, match="never overwritten"):
        durable.publish_folder(tmp_path / "a", lambda folder: None)


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
