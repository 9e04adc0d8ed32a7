"""Publishing is all or nothing, wherever the process stops."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.other_systems import System, linux, macos, windows

from foundation.errors import StorageError
from foundation.storage import durable
from foundation.training.checkpoints import latest_checkpoint, save_checkpoint

PRIMITIVES = ("_fsync", "_link", "_rename", "_unlink", "write_bytes")


EVERYWHERE = pytest.mark.parametrize(
    "system",
    [linux, windows, partial(windows, links=False), macos, partial(macos, full_flush=False)],
    ids=["linux", "windows", "windows without links", "macos", "macos on a network disk"],
)


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


@EVERYWHERE
@pytest.mark.parametrize("failure", [Stop(), OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "I/O error")])
def test_a_file_is_absent_or_whole_at_every_operation(tmp_path: Path, failure: BaseException, system: System) -> None:
    with system():
        require_absent_or_whole(tmp_path, failure)


def require_absent_or_whole(tmp_path: Path, failure: BaseException) -> None:
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


@EVERYWHERE
def test_a_checkpoint_survives_a_stop_at_every_operation_of_the_next(tmp_path: Path, system: System) -> None:
    with system() as refused:
        require_survival(tmp_path)
    assert refused["in use"] == 0


def require_survival(tmp_path: Path) -> None:
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


@EVERYWHERE
def test_the_first_writer_wins_and_another_content_is_loud(tmp_path: Path, system: System) -> None:
    with system():
        publish(tmp_path / "a", b"one")
        publish(tmp_path / "a", b"one")
        with pytest.raises(StorageError, match="exists already with other content"):
            publish(tmp_path / "a", b"two")
        assert visible(tmp_path) == {"a": b"one"}
        durable.replace_file(tmp_path / "a", b"three")
        durable.append_line(tmp_path / "a", "four")
        assert visible(tmp_path) == {"a": b"threefour\n"}


def test_a_flush_on_macos_reaches_the_disk_and_on_a_network_disk_as_far_as_it_can(tmp_path: Path) -> None:
    for full_flush, wanted in ((True, "full"), (False, "refused")):
        with macos(full_flush=full_flush) as seen:
            durable.replace_file(tmp_path / "a", b"1")
        assert seen[wanted] == 2, "the file, then its folder"


def test_windows_is_asked_again_while_another_program_looks_at_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    looks = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            reader.close()

    monkeypatch.setattr(durable.time, "sleep", look)
    with windows() as refused, open(tmp_path / "a", "rb") as reader:
        durable.replace_file(tmp_path / "a", b"2")
    assert visible(tmp_path) == {"a": b"2"} and refused["in use"] == len(looks) == 3


def test_windows_refuses_what_stays_open_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "PATIENCE_SECONDS", 0.0)
    durable.publish_folder(tmp_path / "a", lambda folder: durable.write_bytes(folder / "x", b"1"))
    with windows(), open(tmp_path / "a" / "x", "rb"):
        with pytest.raises(StorageError, match="close the programs that have it open"):
            durable.remove_folder(tmp_path / "a")
        with pytest.raises(StorageError, match="close the programs that have it open"):
            durable.replace_file(tmp_path / "a" / "x", b"2")
    assert (tmp_path / "a" / "x").read_bytes() == b"1"


def test_a_name_or_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="choose a shorter name"):
        durable.replace_file(tmp_path / ("a" * 300), b"1")
    durable.replace_file(tmp_path / ("\u540d" * 80), b"1")  # 240 bytes: a temporary name has only its end
    deep = tmp_path / "/".join(["folder"] * 40)
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"a file")
    with windows(), pytest.raises(StorageError, match=r"shorter path .Windows takes 259 characters"):
        durable.replace_file(deep / "a", b"1")


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
