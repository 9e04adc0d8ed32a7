"""A mirror is complete at every commit, whatever the store does, and has one owner."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from support.object_store import ObjectStore, hurry

from foundation.errors import ConfigError, StorageError
from foundation.storage import durable
from foundation.storage.remote import mirror, mirror_index
from foundation.storage.remote.errors import RemoteError
from foundation.storage.remote.mirror import Mirror, Mirrored
from foundation.storage.remote.mirror_index import Entry, MirrorIndex, MirrorStore, TakenOver, object_name
from foundation.storage.remote.uploads import read_bytes


@pytest.fixture
def memory() -> str:
    _empty()
    return "memory://mirror"


def _empty() -> None:
    system = fsspec.filesystem("memory")
    if system.exists("/mirror"):
        system.rm("/mirror", recursive=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(mirror, "_LOOK_S", 0.02)
    monkeypatch.setattr(mirror, "_AGAIN_S", 0.02)


def claimed(address: str, run: str = "run") -> MirrorStore:
    store = MirrorStore(address)
    store.index = store.read()
    store.claim(run, "digits")
    return store


@contextmanager
def running(store: MirrorStore, root: Path, **settings: object) -> Iterator[Mirror]:
    found = Mirror(store, Mirrored(root, lambda path: False, **settings))  # type: ignore[arg-type]
    found.start()
    try:
        yield found
    finally:
        found.stop()


def content(address: str) -> dict[str, bytes]:
    """What a mirror holds, verified."""
    index = MirrorStore(address).read()
    assert index is not None
    found = {}
    for path, entry in index.files.items():
        found[path] = read_bytes(f"{address}/{object_name(path, entry)}")
        assert mirror_index.hashlib.sha256(found[path]).hexdigest() == entry.sha256, path
        assert len(found[path]) == entry.size
    return found


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def waits_for(met: Callable[[], bool], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not met() and time.monotonic() < until:
        time.sleep(0.01)
    return met()


def test_a_folder_that_changes_is_mirrored_and_nothing_else_stays_in_the_store(
    object_store: ObjectStore, tmp_path: Path, quick: None
) -> None:
    address = f"{object_store.address}/run"
    object_store.share = 0.15
    with running(claimed(address), tmp_path) as own:
        for n in range(6):
            durable.publish_folder(
                tmp_path / f"step-{n}", lambda folder, n=n: durable.write_bytes(folder / "a", b"%d" % n)
            )
            durable.replace_file(tmp_path / "recipe", b"recipe %d" % n)
            durable.append_line(tmp_path / "log.jsonl", f'{{"n": {n}}}')
            if n > 1:
                durable.remove_folder(tmp_path / f"step-{n - 2}")
            if n % 2:
                own.complete(patience=30.0)
                assert content(address) == files(tmp_path)
    object_store.share = 0.0
    index = MirrorStore(address).read()
    assert index is not None
    named = {f"run/{object_name(path, entry)}" for path, entry in index.files.items()}
    assert set(object_store.files()) == {*named, "run/index.json"}, "what no index names is removed"


def test_a_store_that_dies_after_any_request_leaves_a_complete_mirror(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Everything that changes the store is counted; from the n-th on it does nothing, for every n."""
    left, commits, n_deaths = [0], [], 0

    class Dead(Exception):
        pass

    for name in ("upload", "upload_bytes", "remove"):
        real = getattr(mirror_index, name)

        def act(*arguments, real=real, name=name):
            one_by_one = [[each] for each in arguments[0]] if name == "remove" else [None]
            for each in one_by_one:
                if not left[0]:
                    raise Dead
                left[0] -= 1
                real(*([each] if each else arguments))

        monkeypatch.setattr(mirror_index, name, act)
    for n in range(1, 1000):
        _empty()
        commits, left[0] = [{}], n
        try:
            _three_commits(memory, tmp_path / f"{n}", commits)
            break
        except Dead:
            n_deaths += 1
        left[0] = 10**6
        if MirrorStore(memory).read() is None:
            assert commits == [{}]
            continue
        assert content(memory) in commits[-2:], f"after {n} requests"
        store = claimed(memory)  # the next owner clears up
        store.find_strays()
        store.remove_unnamed()
        there = {each.removeprefix("/mirror/") for each in fsspec.filesystem("memory").find("/mirror")}
        assert there == {object_name(*each) for each in store.index.files.items()} | {"index.json"}  # type: ignore[union-attr]
    assert n_deaths > 10


@pytest.mark.slow
def test_an_s3_server_that_dies_after_any_request_leaves_a_complete_mirror(
    object_store: ObjectStore, tmp_path: Path, quick: None
) -> None:
    """From the n-th request on it answers 503, for every n: reads, and writes of which each is verified."""
    n_deaths = 0
    for n in range(2, 1000):
        address, commits = f"{object_store.address}/{n}", [{}]
        object_store.fail_from(len(object_store.requests) + n)
        try:
            _three_commits(address, tmp_path / f"{n}", commits)
            break
        except RemoteError:
            n_deaths += 1
        finally:
            object_store.fail_from(None)
        if MirrorStore(address).read() is None:
            assert commits == [{}]
        else:
            assert content(address) in commits[-2:], f"after {n} requests"
    assert n_deaths > 30


def _three_commits(address: str, root: Path, commits: list[dict[str, bytes]]) -> None:
    """One round after the other, in this thread; ``commits`` gets what each holds, before it is made."""
    own = Mirror(claimed(address), Mirrored(root, lambda path: False))
    for i in range(3):
        durable.publish_folder(root / f"step-{i}", lambda folder, i=i: durable.write_bytes(folder / "state", b"%d" % i))
        durable.write_bytes(root / "recipe", b"the same")
        durable.append_line(root / "log.jsonl", f"{i}")
        if i == 2:
            durable.remove_folder(root / "step-0")
        commits.append(files(root))
        own._asked += 1  # the lines of a log are not put off
        own._round()


def test_of_two_owners_the_older_one_ends_and_names_the_other(memory: str, tmp_path: Path, quick: None) -> None:
    durable.replace_file(tmp_path / "recipe", b"one")
    told = threading.Event()
    with running(claimed(memory), tmp_path, lost=told.set) as older:
        older.complete(patience=5.0)
        newer = claimed(memory)
        durable.replace_file(tmp_path / "recipe", b"two")
        assert told.wait(10.0)
        with pytest.raises(TakenOver, match=r"another process mirrors there now: process \d+ on .*, since .* UTC"):
            older.complete(patience=5.0)
        assert content(memory) == {"recipe": b"one"}, "the older one has written nothing more"
        assert newer.index is not None and MirrorStore(memory).read() == newer.index


def test_an_owner_that_an_earlier_one_wrote_over_puts_everything_again(
    memory: str, tmp_path: Path, quick: None
) -> None:
    """As after a machine that was asleep between its look at the index and its commit, and removed what is ours."""
    older = claimed(memory)
    durable.replace_file(tmp_path / "recipe", b"one")
    with running(claimed(memory), tmp_path) as newer:
        newer.complete(patience=5.0)
        system = fsspec.filesystem("memory")
        system.rm("/mirror/objects", recursive=True)
        older._write(older.index)  # type: ignore[arg-type]
        durable.replace_file(tmp_path / "other", b"two")
        newer.complete(patience=5.0)
        assert content(memory) == {"recipe": b"one", "other": b"two"}


def test_work_goes_on_without_the_store_and_is_told_when_it_fails_and_recovers(
    object_store: ObjectStore, tmp_path: Path, quick: None, capfd: pytest.CaptureFixture[str]
) -> None:
    address, heard = f"{object_store.address}/run", ""
    durable.replace_file(tmp_path / "recipe", b"one")
    with running(claimed(address), tmp_path) as own:
        own.complete(patience=30.0)
        object_store.share, object_store.faults = 1.0, ("503",)
        durable.replace_file(tmp_path / "recipe", b"two")
        assert waits_for(lambda: own._failing_since is not None)
        object_store.share = 0.0
        own.complete(patience=30.0)
        assert waits_for(lambda: own._failing_since is None)
        heard = capfd.readouterr().err
    assert f"warning: nothing is saved at {address} since" in heard
    assert f"the mirror at {address} is up to date again" in heard
    assert "the-secret-of-the-tests" not in heard
    assert content(address) == {"recipe": b"two"}


def test_a_mirror_that_cannot_be_completed_is_an_error_that_says_why_and_what_is_there(
    memory: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.replace_file(tmp_path / "recipe", b"one")
    with running(claimed(memory), tmp_path) as own:
        own.complete(patience=5.0)

        def refused(*_: object) -> None:
            raise RemoteError("forbidden", "may not be written with these credentials", memory)

        monkeypatch.setattr(mirror_index, "upload", refused)
        durable.replace_file(tmp_path / "recipe", b"two")
        with pytest.raises(StorageError, match=r"not complete.*these credentials.*holds what was there at 20"):
            own.complete(patience=0.3)
    assert content(memory) == {"recipe": b"one"}


def test_a_wait_says_what_it_waits_for(
    memory: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror, "_SAY_S", 0.1)
    go = threading.Event()
    real = mirror_index.upload

    def slow(*arguments: object) -> None:
        go.wait(30.0)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mirror_index, "upload", slow)
    durable.replace_file(tmp_path / "a", b"a")
    with running(claimed(memory), tmp_path) as own:
        waiter = threading.Thread(target=own.complete, args=(30.0,))
        waiter.start()
        heard = ""

        def said() -> bool:
            nonlocal heard
            heard += capfd.readouterr().err
            return "0 of 1 files" in heard

        assert waits_for(said)
        go.set()
        waiter.join()
    assert f"waiting for the mirror at {memory}: 0 of 1 files, 0.00 of 0.00 GB are there" in heard


def test_with_little_time_what_is_needed_to_go_on_comes_first_and_the_rest_is_left(
    memory: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, real = threading.Event(), mirror_index.upload

    def slow(source: Path, address: str) -> None:
        if "/large-" in address:
            began.set()
            time.sleep(0.2)
        real(source, address)

    monkeypatch.setattr(mirror_index, "upload", slow)
    for i in range(20):
        durable.replace_file(tmp_path / f"large-{i:02d}", b"%d" % i)

    def choose(listed, is_there):
        return [name for name in listed if name == "state" or "state" not in listed or is_there(name)]

    with running(claimed(memory), tmp_path, choose=choose) as own:
        assert began.wait(10.0)
        durable.replace_file(tmp_path / "state", b"newest")
        own.complete(patience=5.0, limit=2.0)
        assert content(memory)["state"] == b"newest" and len(content(memory)) < 20


@pytest.mark.parametrize("limit", [0.2])
def test_a_limit_of_time_is_kept(
    memory: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    monkeypatch.setattr(mirror_index, "upload", lambda *_: time.sleep(3.0))
    durable.replace_file(tmp_path / "a", b"a")
    with running(claimed(memory), tmp_path) as own, pytest.raises(StorageError, match="was not finished in 0 s"):
        own.complete(patience=60.0, limit=limit)


@pytest.mark.parametrize("address", ["runs/digits", "/tmp/run", "file:///tmp/run", ""])
def test_what_is_no_address_of_a_store_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--mirror"):
        MirrorStore(address)


def test_an_address_with_a_password_is_refused_without_it() -> None:
    with pytest.raises(ConfigError) as caught:
        MirrorStore("s3://me:very-secret@bucket/run")
    assert "very-secret" not in str(caught.value)


def test_something_else_at_the_address_is_refused(memory: str) -> None:
    fsspec.filesystem("memory").pipe_file("/mirror/holiday/a.jpg", b"a")
    with pytest.raises(ConfigError, match=r"something else.*(\n.*)*holiday/a.jpg"):
        MirrorStore(memory).read()


def test_another_run_beside_it_is_not_something_else(memory: str, tmp_path: Path) -> None:
    claimed(f"{memory}/run-2")
    assert MirrorStore(f"{memory}/run").read() is None


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "a bit": lambda data: data.replace(b'"commit": 1', b'"commit": 3'),
    "a way out": lambda data: _signed(data, {"../../x": {"sha256": "0" * 64, "size": 1}}),
    "a root": lambda data: _signed(data, {"/etc/x": {"sha256": "0" * 64, "size": 1}}),
    "a drive": lambda data: _signed(data, {"C:\\x": {"sha256": "0" * 64, "size": 1}}),
    "hidden": lambda data: _signed(data, {".ssh/x": {"sha256": "0" * 64, "size": 1}}),
    "no hash": lambda data: _signed(data, {"a": {"sha256": "../../../a", "size": 1}}),
    "no size": lambda data: _signed(data, {"a": {"sha256": "0" * 64, "size": -1}}),
    "a name that leads out": lambda data: _signed(data, {}, name="../../home"),
    "a name that leads up": lambda data: _signed(data, {}, name=".."),
    "a list": lambda data: b"[]",
}


def _signed(data: bytes, names: dict, **changes: object) -> bytes:
    values = json.loads(data)["index"] | {"files": names} | changes
    return json.dumps({"index": values, "sha256": mirror_index._digest(values)}).encode()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_index_is_refused(memory: str, damage: str) -> None:
    claimed(memory)
    system = fsspec.filesystem("memory")
    data = system.cat_file("/mirror/index.json")
    system.pipe_file("/mirror/index.json", DAMAGES[damage](data))
    with pytest.raises(StorageError.__base__, match=r"index.json: is damaged"):  # type: ignore[arg-type]
        MirrorStore(memory).read()


def test_an_index_comes_back_as_it_was() -> None:
    owner = mirror_index.Owner.of_this_process(3)
    index = MirrorIndex("run", "dïgits", owner, 7, "now", {"a/b": Entry("0" * 64, 5)})
    assert MirrorIndex.from_bytes(index.to_bytes()) == index
