"""The index of an archive is built once, kept, and built again when the archive or the index has changed."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.image_tables import png, write_tar

from foundation.images.archive import ArchiveSource
from foundation.images.archive_index import index_of
from foundation.storage.disk_cache import DiskCache
from foundation.storage.remote.files import LocalFile


@pytest.fixture
def opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the archives that are read for an index."""
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    found: list[str] = []
    whole = tarfile.open

    def noted(name: Path, *rest: object) -> tarfile.TarFile:
        if rest == ("r:",):
            found.append(Path(name).name)
        return whole(name, *rest)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(tarfile, "open", noted)
    return found


def write(folder: Path, n: int = 4) -> Path:
    for shard in range(2):
        rows = range(n * shard, n * shard + n)
        members = [each for i in rows for each in ((f"{i}.png", png(i)), (f"{i}.cls", b"%d" % (i % 2)))]
        write_tar(folder / f"{shard}.tar", [*members, ("README", b"x")])
    return folder


def test_a_second_start_opens_no_archive(tmp_path: Path, opens: list[str]) -> None:
    folder = write(tmp_path / "tars")
    first = ArchiveSource(str(folder), "cls")
    assert sorted(opens) == ["0.tar", "1.tar"]
    again = ArchiveSource(str(folder), "cls")
    assert len(opens) == 2
    assert list(first.ids) == list(again.ids) and first.fingerprint == again.fingerprint
    assert first.labels is not None and again.labels is not None and np.array_equal(first.labels, again.labels)
    assert first.passed_over.rows() == again.passed_over.rows() and len(again.passed_over.rows()) == 1
    assert all(np.asarray(again.read(i))[0, 0] == i for i in range(8))


def test_a_changed_archive_alone_is_indexed_again(tmp_path: Path, opens: list[str]) -> None:
    folder = write(tmp_path / "tars")
    ArchiveSource(str(folder), None)
    opens.clear()
    before = (folder / "1.tar").stat()
    write_tar(folder / "1.tar", [(f"n{i}.png", png(i)) for i in range(4, 8)])
    os.utime(folder / "1.tar", ns=(before.st_atime_ns, before.st_mtime_ns))  # the old time does not hide it
    source = ArchiveSource(str(folder), None)
    assert opens == ["1.tar"] and source.ids[4:] == [f"1.tar/n{i}" for i in range(4, 8)]
    ArchiveSource(str(folder), None)
    assert opens == ["1.tar"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_index_is_built_again(tmp_path: Path, opens: list[str], damage: str) -> None:
    folder = write(tmp_path / "tars")
    ids = list(ArchiveSource(str(folder), None).ids)
    for path in (tmp_path / "cache" / "archives").glob("*"):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes({"cut": content[:-9], "empty": b"", "flipped": content}[damage])
    opens.clear()
    assert list(ArchiveSource(str(folder), None).ids) == ids and len(opens) == 2
    ArchiveSource(str(folder), None)
    assert len(opens) == 2


def test_where_nothing_can_be_kept_the_index_is_built_at_every_start_and_that_is_said(
    tmp_path: Path, opens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "tars")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "file"))
    source = ArchiveSource(str(folder), None)
    assert len(source.ids) == 8 and "could not be kept" in source.notes[0]
    assert np.asarray(source.read(5))[0, 0] == 5


def test_an_index_holds_arrays_and_no_object_for_each_image(tmp_path: Path, opens: list[str]) -> None:
    write_tar(tmp_path / "a.tar", [(f"{i:06d}.png", b"x" * 10) for i in range(2000)])
    index = index_of(LocalFile(tmp_path / "a.tar"), None, DiskCache(tmp_path / "kept", 1 << 20))
    n_bytes = index.keys.nbytes + index.offsets.nbytes + index.sizes.nbytes
    assert n_bytes < 2000 * 40 and index.is_kept
