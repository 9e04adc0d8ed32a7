"""A folder as it is at one moment, and content that stays whatever becomes of the files."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from foundation.storage import durable, snapshot
from foundation.storage.snapshot import ChangedMeanwhile, held, list_files


def none(_: str) -> bool:
    return False


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_plain_files_are_listed_without_links_hidden_temporary_and_left_out_ones(tmp_path: Path) -> None:
    make(tmp_path, "a", "b/c", "b/.leases/x", ".lock", ".tmp-0123-x.part/y", "out/z", "bé/ü")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "folder").symlink_to(tmp_path / "b")
    assert list(list_files(tmp_path, lambda path: path == "out")) == ["a", "b/c", "bé/ü"]


def test_a_list_is_of_one_moment_however_fast_the_folder_changes(tmp_path: Path) -> None:
    """A writer makes n+1 before it removes n: a list without both was of no moment."""
    over, wrong = threading.Event(), []

    def write() -> None:
        n = 0
        while not over.is_set():
            durable.replace_file(tmp_path / f"{n + 1:08d}", b"")
            (tmp_path / f"{n:08d}").unlink(missing_ok=True)
            n += 1

    make(tmp_path, f"{0:08d}")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            try:
                names = list(list_files(tmp_path, none))
            except ChangedMeanwhile:
                continue
            if not 1 <= len(names) <= 2:
                wrong.append(names)
    finally:
        over.set()
        writer.join()
    assert not wrong


@pytest.mark.parametrize("has_links", [True, False])
def test_held_content_stays_when_files_are_replaced_or_removed(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_links:

        def refused(*_: object) -> None:
            raise PermissionError(1, "no links here")

        monkeypatch.setattr(snapshot.Path, "hardlink_to", refused)
    make(tmp_path, "step-1/state", "recipe", "untouched")
    listed = list_files(tmp_path, none)
    with held(tmp_path, listed) as places:
        shutil.rmtree(tmp_path / "step-1")
        durable.replace_file(tmp_path / "recipe", b"another")
        assert {name: place.read_text() for name, place in places.items()} == {name: name for name in listed}
        assert list(list_files(tmp_path, none)) == ["recipe", "untouched"], "what holds them is no part of the folder"
    assert {each.name for each in tmp_path.iterdir()} == {"recipe", "untouched"}


def test_lines_are_copied_up_to_the_last_complete_one_and_later_ones_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a"')
    with held(tmp_path, list_files(tmp_path, none)) as places:
        durable.append_line(tmp_path / "metrics.jsonl", ": 3}")
        assert places["metrics.jsonl"].read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("change", ["gone", "replaced"])
def test_what_changed_since_it_was_listed_is_not_held(tmp_path: Path, change: str) -> None:
    make(tmp_path, "a", "b")
    listed = list_files(tmp_path, none)
    if change == "gone":
        (tmp_path / "b").unlink()
    else:
        durable.replace_file(tmp_path / "b", b"other")
    with pytest.raises(ChangedMeanwhile), held(tmp_path, listed):
        pass
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".tmp-")]
