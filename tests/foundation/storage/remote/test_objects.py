"""Remote files: what addresses stand for, what is said of failures, and that nothing secret is said."""

import base64
import hashlib
import multiprocessing
from pathlib import Path

import fsspec
import pytest
from support.faulty_server import FaultyServer, serving

from foundation.errors import DataError
from foundation.storage import retrying
from foundation.storage.disk_cache import DiskCache
from foundation.storage.remote import objects, transfer
from foundation.storage.remote.errors import RemoteError, code_of, described, is_transient
from foundation.storage.remote.files import RemoteFile
from foundation.storage.remote.objects import RemoteObject, braces, list_objects
from foundation.storage.remote.transfer import fetch, read_range


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    monkeypatch.setattr(transfer, "BLOCK_BYTES", 1000)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..10}", ["8", "9", "10"]),
        ("a{0..1}b{x,y}", ["a0bx", "a0by", "a1bx", "a1by"]),
        ("{train}-{1..1}", ["{train}-1"]),
    ],
)
def test_braces_stand_for_names(text: str, names: list[str]) -> None:
    assert braces(text) == names


def test_too_many_names_are_refused_before_they_are_made() -> None:
    with pytest.raises(DataError, match="too many names"):
        braces("{0..99999}{0..99999}")


def memory_file(name: str, content: bytes) -> RemoteObject:
    fsspec.filesystem("memory").pipe(f"/objects/{name}", content)
    return list_objects(f"memory://objects/{name}", "", "data.source.path")[0]


def test_a_file_is_fetched_in_blocks_and_in_ranges(tmp_path: Path) -> None:
    for n in (0, 1, 999, 1000, 1001, 5500):
        content = hashlib.sha256(str(n).encode()).digest() * (n // 32 + 1)
        found = memory_file("x", content[:n])
        fetch(found, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == content[:n]
        assert n < 5000 or read_range(found, 7, 4001) == (content[7:4008], True)
        assert n < 20 or read_range(found, 7, 11) == (content[7:18], True)


def test_a_file_that_was_replaced_is_not_taken_for_the_one_that_was_listed(tmp_path: Path) -> None:
    found = memory_file("y", b"1" * 3000)
    memory_file("y", b"2" * 3000)
    with pytest.raises(RemoteError) as refused:
        fetch(found, tmp_path / "y")
    assert refused.value.code == "changed"


def test_a_checksum_of_the_store_is_compared(tmp_path: Path) -> None:
    found = memory_file("z", b"1" * 3000)
    right, wrong = hashlib.md5(b"1" * 3000).hexdigest(), hashlib.md5(b"2").hexdigest()
    fetch(RemoteObject(found.address, found.size, found.version, ("md5", right)), tmp_path / "z")
    with pytest.raises(RemoteError, match="arrived with another md5"):
        fetch(RemoteObject(found.address, found.size, found.version, ("md5", wrong)), tmp_path / "z")
    assert objects._checksum({"md5Hash": base64.b64encode(bytes.fromhex(right)).decode()}) == ("md5", right)
    assert objects._checksum({"lfs": {"sha256": "ab"}, "ETag": "1"}) == ("sha256", "ab")
    assert objects._checksum({"ETag": right}) is None, "an ETag is no checksum where the store encrypts"


@pytest.mark.parametrize("fault", ["500", "503", "short", "cut", "refused", "silent"])
def test_each_failure_that_passes_is_tried_again(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "TIMEOUT_S", 0.5)
    content = bytes(range(256)) * 12
    served = FaultyServer({"a.tar": content})
    with serving(served) as address:
        found = list_objects(f"{address}/a.tar", ".tar", "field")[0]
        served.share, served.faults = 0.4, (fault,)
        fetch(found, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == content
        served.share = 1.0
        with pytest.raises(RemoteError) as refused:
            read_range(found, 0, 10)
    assert refused.value.code == "unavailable" and "several tries" in str(refused.value)


class Answer(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("https://me:secret@host/a.tar?token=secret")
        self.status = status


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Answer(404), "vanished"),
        (Answer(403), "forbidden"),
        (Answer(401), "forbidden"),
        (Answer(412), "changed"),
        (Answer(429), "unavailable"),
        (Answer(502), "unavailable"),
        (FileNotFoundError("x"), "vanished"),
        (PermissionError("x"), "forbidden"),
        (TimeoutError(), "unavailable"),
        (ConnectionResetError(104, "x"), "unavailable"),
    ],
)
def test_errors_of_stores_have_a_meaning_and_are_said_without_secrets(error: Exception, code: str) -> None:
    assert code_of(error) == code and is_transient(error) == (code == "unavailable")
    hidden = FileNotFoundError("x")
    hidden.__cause__ = error
    assert code_of(hidden) == code, "the true error is the cause of the one that fsspec raises"
    said = str(described(error, "https://me:secret@host/a.tar?token=secret"))
    assert "secret" not in said and "https://host/a.tar" in said


def test_a_missing_package_or_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(DataError, match=r"package that is not installed(.|\n)*nowhere"):
        fsspec.register_implementation("nowhere", "no_such_package.Files", clobber=True, errtxt="install nowhere")
        list_objects("nowhere://a/b.tar", ".tar", "field")
    with pytest.raises(DataError, match=r"Protocol not known(.|\n)*s3://"):
        list_objects("unheard://a/b.tar", ".tar", "field")


def _read(folder: Path, found: RemoteObject, n: int) -> None:
    file = RemoteFile(found, DiskCache(folder, 1 << 20))
    file.expect()
    assert file.read(0, n) == b"7" * n


def test_processes_of_a_machine_fetch_a_file_once(tmp_path: Path) -> None:
    served = FaultyServer({"a.tar": b"7" * 5000})
    with serving(served) as address:
        found = list_objects(f"{address}/a.tar", ".tar", "field")[0]
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=_read, args=(tmp_path / "cache", found, 5000)) for _ in range(3)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
    assert [each.exitcode for each in workers] == [0, 0, 0]
    assert len(served.gets) == 5, "each of five blocks once"
