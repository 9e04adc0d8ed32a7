"""Space is looked for before it is needed, what dead processes left is swept, and what live ones write is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from foundation.errors import StorageError
from foundation.storage import durable, names
from foundation.storage.names import FOREIGN_SECONDS, is_left_behind, is_temporary, temporary_name
from foundation.training.checkpoints import latest_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
WRITER = """
import sys, time
from pathlib import Path
from foundation.storage import durable
def fill(folder):
    (folder / "half").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(600)
durable.publish_folder(Path(sys.argv[1]) / "part", fill)
"""


def writer(folder: Path, *before: str) -> tuple[subprocess.Popen, Path]:
    """A process in the middle of writing a folder, and the temporary name of it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [*before, sys.executable, "-c", WRITER, str(folder)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_live_process_writes_stays_and_goes_once_it_is_dead(tmp_path: Path, keep: Callable) -> None:
    process, half = writer(tmp_path)
    try:
        assert is_temporary(half) and (half / "half").exists()
        durable.sweep(tmp_path)
        assert (half / "half").exists(), "swept from under a live process"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    durable.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
    keep("sweeping", **{"live processes robbed": 0, "leftovers of dead ones": 0})


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = temporary_name(tmp_path / "a")
    mine.write_bytes(b"x")
    assert not is_left_behind(mine)
    monkeypatch.setattr(names, "_started", lambda pid: 12345)
    assert is_left_behind(mine), "the number was given again, to a process that started at another time"


def test_what_another_machine_writes_counts_as_left_behind_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Callable
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(names, "_host", lambda: "0123456789ab")
        folder = temporary_name(tmp_path / "a")
    folder.mkdir()
    (folder / "part").write_bytes(b"x")
    old = time.time() - FOREIGN_SECONDS - 60
    os.utime(folder, (old, old))
    durable.sweep(tmp_path)
    assert folder.exists(), "a file in it was written a moment ago"
    os.utime(folder / "part", (old, old))
    durable.sweep(tmp_path)
    assert not folder.exists()
    keep("sweeping", **{"hours before another machine's leftovers go": 24})


def test_a_container_beside_this_one_is_another_machine(tmp_path: Path) -> None:
    """The same host and boot, but process numbers of its own: here it looks as if nobody had that number."""
    allowed = subprocess.run(["unshare", "-rpf", "true"], capture_output=True, check=False).returncode == 0
    if not allowed:
        pytest.skip("this system makes no process namespaces")
    process, half = writer(tmp_path, "unshare", "-rpf", "--kill-child")
    try:
        durable.sweep(tmp_path)
        assert (half / "half").exists()
    finally:
        process.kill()
        process.wait()


def test_other_names_are_never_swept(tmp_path: Path) -> None:
    for name in ("a", ".hidden", ".lock", "tmp-1", "step-00000001"):
        (tmp_path / name).write_bytes(b"x")
    durable.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_checkpoint_that_does_not_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Callable
) -> None:
    weights = torch.zeros(3 << 20)  # 12 MiB
    save_checkpoint(tmp_path, 1, {"weights": torch.ones(2)})
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda path: SimpleNamespace(free=13 << 20))
    monkeypatch.setattr(durable, "_make_folder", None)
    with pytest.raises(StorageError) as caught:
        save_checkpoint(tmp_path, 2, {"weights": weights})
    for fragment in ("13.0 MiB free", "at least 14.2 MiB", "checkpoint", "free some space"):
        assert fragment in str(caught.value)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000001"]
    keep("free space", **{"looked for before writing": "yes, with both numbers named"})


def test_rotation_deletes_last_and_counts_only_sound_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for name in ("_rename", "_remove_tree"):
        real = getattr(durable, name)
        monkeypatch.setattr(durable, name, lambda *a, name=name, real=real: (order.append((name, a[0].name)), real(*a)))
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step}, keep=1)
    (tmp_path / "step-00000002" / "state.json").write_bytes(b"damaged")
    order.clear()
    save_checkpoint(tmp_path, 3, {"step": 3}, keep=1)
    assert [name for name, _ in order] == ["_rename"], "1 stays: with 3 it makes two sound ones"
    save_checkpoint(tmp_path, 4, {"step": 4}, keep=1)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    renamed = [name for kind, name in order if kind == "_rename"]
    assert "step-00000004" in renamed[1], "the new one is published before an old one goes"
    assert set(renamed[2:]) == {"step-00000001", "step-00000002"}


def test_without_hard_links_the_first_writer_still_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT, and some network disks."""

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(durable, "_link", refuse)
    for content, refused in ((b"one", False), (b"one", False), (b"two", True)):
        write = lambda path, content=content: durable.write_bytes(path, content)  # noqa: E731
        if refused:
            with pytest.raises(StorageError, match="other content"):
                durable.publish_file(tmp_path / "a", write)
        else:
            durable.publish_file(tmp_path / "a", write)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"one"]
