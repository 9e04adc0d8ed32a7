"""Uploads: whole or not at all, verified, tried again, and said without secrets; on a real S3 server with faults."""

import hashlib
import re
import time
from pathlib import Path

import fsspec
import pytest
from support.object_store import FAULTS, ObjectStore, hurry

from foundation.errors import StorageError
from foundation.storage import retrying
from foundation.storage.remote import objects, uploads
from foundation.storage.remote.errors import RemoteError
from foundation.storage.remote.transfer import fetch
from foundation.storage.remote.uploads import (
    exists,
    list_below,
    read_bytes,
    remote_sha256,
    remove,
    upload,
    upload_bytes,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('object_store').address}/place"
    system = fsspec.filesystem("memory")
    if system.exists("/place"):
        system.rm("/place", recursive=True)
    return "memory://place"


@pytest.mark.parametrize("n_bytes", [0, 1, 5000])
def test_a_file_or_bytes_are_there_whole_and_can_be_replaced_listed_and_removed(
    place: str, n_bytes: int, tmp_path: Path
) -> None:
    content = b"7" * n_bytes
    (tmp_path / "source").write_bytes(content)
    assert not exists(f"{place}/a/b") and list_below(place) == []
    upload(tmp_path / "source", f"{place}/a/b")
    upload_bytes(content, f"{place}/a/c d")
    assert exists(f"{place}/a/b") and not exists(f"{place}/a"), "a folder is no file"
    assert [(each.address, each.size) for each in list_below(place)] == [
        (f"{place}/a/{n}", n_bytes) for n in ("b", "c d")
    ]
    assert read_bytes(f"{place}/a/b") == read_bytes(f"{place}/a/c d") == content
    upload_bytes(b"other", f"{place}/a/b")
    assert read_bytes(f"{place}/a/b") == b"other"
    remove([f"{place}/a/b", f"{place}/never"])
    assert [each.name for each in list_below(f"{place}/a/")] == ["c d"]


def test_the_first_writer_wins_and_another_content_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"one")
    upload(tmp_path / "source", f"{place}/a", new=True)
    upload(tmp_path / "source", f"{place}/a", new=True)
    upload_bytes(b"one", f"{place}/a", new=True)
    with pytest.raises(StorageError, match="exists already with other content"):
        upload_bytes(b"two", f"{place}/a", new=True)
    assert read_bytes(f"{place}/a") == b"one"


@pytest.mark.parametrize("fault", FAULTS)
def test_each_failure_is_tried_again_also_after_the_store_has_done_the_work(
    object_store: ObjectStore, fault: str, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 12
    (tmp_path / "source").write_bytes(content)
    object_store.share, object_store.faults = 0.4, (fault,)
    for i, new in enumerate((False, True)):
        upload(tmp_path / "source", f"{object_store.address}/{i}", new=new)
        upload_bytes(content, f"{object_store.address}/{i}b", new=new)
    assert read_bytes(f"{object_store.address}/0") == content
    assert len(list_below(object_store.address)) == 4
    assert object_store.counts[fault] > 0 and set(object_store.files().values()) == {content}


def test_a_lost_answer_does_not_make_a_new_file_someone_elses(object_store: ObjectStore) -> None:
    object_store.fail_next("lost")
    upload_bytes(b"one", f"{object_store.address}/a", new=True)
    assert object_store.counts["lost"] == 1 and object_store.files() == {"a": b"one"}
    assert [each for each, _ in object_store.requests if each == "PUT"] == ["PUT"] * 3, "the bucket's, and two tries"


def test_a_large_file_goes_in_parts_and_appears_at_once(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 5 << 20)
    content = hashlib.sha256(b"x").digest() * ((12 << 20) // 32) + b"end"
    (tmp_path / "source").write_bytes(content)
    object_store.share = 0.2
    upload(tmp_path / "source", f"{object_store.address}/a", new=True)
    upload(tmp_path / "source", f"{object_store.address}/a", new=True)
    object_store.share = 0.0
    found = objects.current(f"{object_store.address}/a")
    assert found.version.strip('"').endswith("-3"), "three parts"
    assert sum("partNumber" in path for _, path in object_store.requests) >= 3
    assert remote_sha256(found) == hashlib.sha256(content).hexdigest()
    before = len(object_store.requests)
    upload(tmp_path / "source", f"{object_store.address}/b")
    assert not any(method == "GET" for method, _ in object_store.requests[before:]), "verified by its ETag, not read"
    fetch(found, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("new", [False, True])
def test_an_upload_in_parts_whose_last_answer_is_lost_is_sent_again(
    object_store: ObjectStore, new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 5 << 20)
    content = bytes(11 << 20)
    object_store.fail_next("", "", "", "", "lost")
    upload_bytes(content, f"{object_store.address}/a", new=new)
    assert object_store.counts["lost"] == 1 and object_store.files() == {"a": content}


def test_a_store_that_stays_away_is_waited_for_in_words_and_given_up_without_secrets(
    object_store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    object_store.share, object_store.faults = 1.0, ("503",)
    with pytest.raises(RemoteError, match=r"could not be written after several tries(.|\n)*run the same command") as no:
        upload_bytes(b"one", f"{object_store.address}/a")
    said = capsys.readouterr().err
    assert re.search(rf"waiting for {object_store.address}/a since \d+ s, next try in 30 s: ", said)
    assert len(said.splitlines()) >= 3, "pauses of 30, 60 and 120 s"
    assert no.value.code == "unavailable" and "secret" not in str(no.value) + said
    assert object_store.counts["503"] == len(retrying.LONG_PAUSES) + 1, "no retries but ours"


def test_a_bucket_that_is_not_there_is_said_so_without_waiting(object_store: ObjectStore) -> None:
    began = time.perf_counter()
    with pytest.raises(RemoteError, match="bucket or repository is not there"):
        upload_bytes(b"one", "s3://no-such-bucket-here/a")
    assert time.perf_counter() - began < 60 and list_below("s3://no-such-bucket-here/a") == []


def test_content_that_arrived_differently_is_sent_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    real = uploads._Content.send

    def damaged(self: uploads._Content, system: object, path: str, *, new: bool) -> None:
        sent.append(path)
        real(self if len(sent) > 1 else uploads._Content(b"ONE"), system, path, new=new)

    monkeypatch.setattr(uploads._Content, "send", damaged)
    upload_bytes(b"one", f"{place}/a")
    assert len(sent) == 2 and read_bytes(f"{place}/a") == b"one"


def test_missing_credentials_are_said_at_once(monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RemoteError, match=r"may not be .* with these credentials(.|\n)*AWS_PROFILE"):
        upload_bytes(b"a", f"{object_store.address}/a")
