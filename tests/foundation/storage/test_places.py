"""Places: a folder on a disk, in S3 and in memory take the same calls and then hold the same."""

from pathlib import Path

import fsspec
import pytest
from support.object_store import ObjectStore, hurry

from foundation.errors import ConfigError, DataError, StorageError
from foundation.storage import durable
from foundation.storage.places import LocalPlace, Place, RemotePlace, as_place, fetch_copies, place_at

KINDS = ["disk", "s3", "s3 with copies", "memory", "memory with copies"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    kind, copies = request.param.split()[0], tmp_path / "copies" if "copies" in request.param else None
    if kind == "disk":
        return LocalPlace(tmp_path / "disk")
    if kind == "s3":
        store: ObjectStore = request.getfixturevalue("object_store")
        store.share = 0.15
        return RemotePlace(f"{store.address}/a/place", copies)
    system = fsspec.filesystem("memory")
    if system.exists("/place"):
        system.rm("/place", recursive=True)
    return RemotePlace("memory://place", copies)


def put(place: Place, name: str, content: bytes) -> None:
    place.publish_file(name, lambda path: durable.write_bytes(path, content))


def fill(folder: Path) -> None:
    for name in ("b", "c", "last"):
        durable.write_bytes(folder / name, name.encode())


def test_files_are_published_found_replaced_read_and_removed(place: Place) -> None:
    assert place.names() == [] and place.find("a") is None and not place.exists("a")
    put(place, "data/x/a", b"1")
    put(place, "data/x/a", b"1")
    place.replace("b", b"2")
    assert place.names() == ["b", "data/x/a"] and place.names("data") == ["data/x/a"]
    assert place.exists("b") and place.find("b") == b"2" and not place.exists("data/x/b")
    stamps = place.stamps("")
    place.replace("b", b"22")
    assert place.find("b") == b"22" and place.local("b").read_bytes() == b"22"
    assert {name for name, stamp in place.stamps("").items() if stamp != stamps[name]} == {"b"}
    place.remove("b")
    assert not place.exists("b") and place.names() == ["data/x/a"]


def test_the_first_writer_wins_and_other_content_is_refused(place: Place) -> None:
    put(place, "a", b"1")
    with pytest.raises(StorageError, match="exists already with other content"):
        put(place, "a", b"2")
    assert place.find("a") == b"1"
    with pytest.raises(StorageError, match="differs from what was written"):
        place.publish_file("c", lambda path: durable.write_bytes(path, b"3"), lambda path: {}[path])
    assert not place.exists("c"), "what is not verified is not published"


def test_a_folder_is_there_whole_or_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not place.has_folder("train/1", "last")

    def dying(folder: Path) -> None:
        durable.write_bytes(folder / "b", b"b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.publish_folder("train/1", dying, "last")
    assert not place.has_folder("train/1", "last")
    place.publish_folder("train/1", fill, "last")
    assert place.has_folder("train/1", "last")
    assert place.names("train") == ["train/1/b", "train/1/c", "train/1/last"]


def test_in_a_store_the_last_file_of_a_folder_comes_last(object_store: ObjectStore) -> None:
    RemotePlace(object_store.address).publish_folder("train", fill, "last")
    puts = [path for method, path in object_store.requests if method == "PUT"][1:]
    assert len(puts) == 3 and puts[-1].endswith("/train/last")


def test_a_folder_that_was_interrupted_in_a_store_is_published_again(object_store: ObjectStore) -> None:
    place = RemotePlace(object_store.address)
    put(place, "train/c", b"c")
    place.publish_folder("train", fill, "last")
    assert object_store.files() == {"train/b": b"b", "train/c": b"c", "train/last": b"last"}
    put(place, "other/b", b"another's")
    with pytest.raises(StorageError, match="other content"):
        place.publish_folder("other", fill, "last")
    assert not place.has_folder("other", "last")


def test_copies_follow_the_store_and_are_never_ahead_of_it(object_store: ObjectStore, tmp_path: Path) -> None:
    here, there = (RemotePlace(object_store.address, tmp_path / name) for name in ("here", "there"))
    put(here, "a/b", b"1")
    fetch_copies(there, ["a/b"])
    assert (tmp_path / "there" / "a" / "b").read_bytes() == b"1"
    here.replace("a/b", b"2")
    gets = object_store.counts["GET"]
    assert there.local("a/b").read_bytes() == b"2" and object_store.counts["GET"] > gets
    gets = object_store.counts["GET"]
    assert there.local("a/b").read_bytes() == b"2" and object_store.counts["GET"] == gets, "the checksum tells"
    object_store.share, object_store.faults = 1.0, ("503",)
    with pytest.raises(DataError):
        here.replace("a/b", b"3")
    assert (tmp_path / "here" / "a" / "b").read_bytes() == b"2"


def test_a_place_keeps_no_copies_unless_it_is_told_to(object_store: ObjectStore) -> None:
    place = RemotePlace(object_store.address)
    put(place, "a", b"1")
    place.publish_folder("b", fill, "last")
    assert [each for each in place.folder.rglob("*") if each.is_file()] == []


def test_a_file_of_the_store_finds_no_way_out_of_the_folder(object_store: ObjectStore, tmp_path: Path) -> None:
    place = RemotePlace(object_store.address, tmp_path / "copies")
    for name in ("../a", "a/../../b", "a/nul", "a//b"):
        with pytest.raises(DataError, match="a name that no file"):
            place.local(name)
    assert not (tmp_path / "a").exists()


def test_an_address_with_a_secret_is_refused_and_not_shown(tmp_path: Path) -> None:
    for address in ("s3://me:hidden@bucket/a", "https://host/a?token=hidden"):
        with pytest.raises(ConfigError) as refused:
            place_at(address, "--out")
        assert "hidden" not in str(refused.value) and "--out" in str(refused.value)
    assert isinstance(place_at(str(tmp_path), "--out"), LocalPlace)
    place = place_at("memory://a/b", "--out")
    assert as_place(place) is place and place.shown == "memory://a/b"
