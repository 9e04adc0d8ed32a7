"""A bounded folder of files: made once by all processes, whole or not at all, the least recently used go first."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from foundation.errors import DataError, StorageError
from foundation.storage.disk_cache import DiskCache
from foundation.storage.names import is_temporary

KIB = 1024


def put(cache: DiskCache, key: str, kib: int = 1) -> Path:
    return cache.get(key, kib * KIB, lambda target: target.write_bytes(key[:1].encode() * kib * KIB) and None)


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir() if each.is_file()}


def test_a_file_is_made_once_and_found_by_its_key(tmp_path: Path) -> None:
    cache, made = DiskCache(tmp_path / "c", KIB), []

    def make(target: Path) -> None:
        made.append(1)
        target.write_bytes(b"x")

    assert cache.find("a", "x.tar") is None
    path = cache.get("a", 1, make, "x.tar")
    assert path == cache.get("a", 1, make, "x.tar") == cache.find("a", "x.tar")
    assert path.read_bytes() == b"x" and path.name == "a-x.tar" and len(made) == 1
    path.unlink()
    assert cache.find("a", "x.tar") is None
    assert cache.get("a", 1, make, "x.tar").exists() and len(made) == 2


def test_the_least_recently_used_files_make_room(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", 4 * KIB)
    for i, key in enumerate("abcd"):
        os.utime(put(cache, key), (i, i))
    cache._touched.clear()
    assert cache.find("a") is not None  # used now
    put(cache, "e", 2)
    assert names(tmp_path / "c") == {"a", "d", "e"}
    for key in "fghij":
        put(cache, key)
        assert sum(each.stat().st_size for each in (tmp_path / "c").iterdir() if each.is_file()) <= 4 * KIB
    with pytest.raises(DataError, match=r"larger than the cache(.|\n)*remote_cache_gib"):
        put(cache, "z", 5)


def test_a_reader_of_a_removed_file_keeps_it(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", KIB)
    with open(put(cache, "a"), "rb") as file:
        put(cache, "b")
        assert cache.find("a") is None and file.read() == b"a" * KIB


def _make_slowly(folder: Path, done: Path) -> None:
    def make(target: Path) -> None:
        with open(done, "a", encoding="utf-8") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        target.write_bytes(b"x")

    assert DiskCache(folder, KIB).get("a", 1, make).read_bytes() == b"x"


def test_processes_that_want_one_file_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make_slowly, args=(tmp_path / "c", tmp_path / "log")) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert [each.exitcode for each in workers] == [0] * 4
    assert len((tmp_path / "log").read_text(encoding="utf-8").split()) == 1


def _hang(folder: Path, begun: Path) -> None:
    def make(target: Path) -> None:
        target.write_bytes(b"half")
        begun.touch()
        time.sleep(60)

    DiskCache(folder, KIB).get("a", 1, make)


def test_a_process_that_is_killed_leaves_nothing_half(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_hang, args=(tmp_path / "c", tmp_path / "begun"))
    worker.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    cache = DiskCache(tmp_path / "c", KIB)
    assert cache.find("a") is None and any(is_temporary(each) for each in (tmp_path / "c").iterdir())
    assert put(cache, "a").read_bytes() == b"a" * KIB
    assert names(tmp_path / "c") == {"a"}, "what the killed process left is swept"


def test_a_failure_leaves_nothing_and_is_passed_on(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", KIB)

    def fail(target: Path) -> None:
        target.write_bytes(b"half")
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        cache.get("a", 1, fail)
    assert names(tmp_path / "c") == set()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        put(DiskCache(tmp_path / "file", KIB), "a")
