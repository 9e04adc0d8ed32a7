"""Shared pieces of work: the last one to end finds everything done, and leases give way."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import work_sharing
from pipeline.work_sharing import SILENT_SECONDS, Leases, Part, SharedWork


@dataclass(frozen=True)
class Numbered:
    number: int

    @property
    def name(self) -> str:
        return f"piece-{self.number}"


@dataclass
class Log:
    done: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)


def work(folder: Path, log: Log, others: set[int], n: int = 3, idle: object = None) -> SharedWork[Numbered]:
    return SharedWork(
        [Numbered(i) for i in range(n)],
        Leases(folder),
        is_done=lambda piece: piece.number in others or piece.number in log.done,
        do=lambda piece: log.done.append(piece.number),
        seen=lambda piece: log.seen.append(piece.number),
        idle=idle or (lambda: None),  # type: ignore[arg-type]
    )


def test_what_another_ends_meanwhile_is_not_left_over(tmp_path: Path) -> None:
    """Both have begun before either has ended: the one that ends last must see that all is done, or nobody finishes."""
    log, others = Log(), set[int]()
    shared = work(tmp_path, log, others)

    def do(piece: Numbered) -> None:
        log.done.append(piece.number)
        if piece.number == 2:
            others.add(0)

    shared = SharedWork(shared.pieces, shared.leases, shared.is_done, do, shared.seen)
    with Leases(tmp_path).claim("piece-0") as ours:
        assert ours and shared.take_part(Part(), wait=False) == []
    assert log.done == [1, 2] and log.seen == [0]


def test_what_others_hold_is_left_to_them_or_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_sharing, "POLL_SECONDS", 0.0)
    log, others, waits = Log(), {2}, []

    def idle() -> None:
        waits.append(1)
        if len(waits) == 3:
            others.add(1)

    with Leases(tmp_path).claim("piece-1") as ours:
        assert ours
        left = work(tmp_path, log, others).take_part(Part(), wait=False)
        assert [piece.number for piece in left] == [1] and log.done == [0]
        assert work(tmp_path, log, others, idle=idle).take_part(Part(), wait=True) == []
    assert log.done == [0] and len(waits) == 3
    assert not list(tmp_path.iterdir()), "no lease is left"


def test_a_lease_lasts_as_long_as_its_holder_renews_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import work_sharing

    monkeypatch.setattr(work_sharing, "HEARTBEAT_SECONDS", 0.01)
    path = tmp_path / "x.json"
    with Leases(tmp_path).claim("x") as ours:
        assert ours
        (holder,) = Leases(tmp_path).holders()
        assert holder.alive and holder.pid == os.getpid() and holder.work == "x"
        old = time.time() - 2 * SILENT_SECONDS
        os.utime(path, (old, old))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < old + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        with Leases(tmp_path).claim("x") as again:
            assert not again
    assert not path.exists()


def test_who_lost_a_lease_does_not_remove_the_next_holder_s(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with Leases(tmp_path).claim("x") as ours:
        assert ours
        path.write_text(json.dumps({"owner": "another", "host": "h", "pid": 1}))
    assert "another" in path.read_text()


def test_a_long_wait_says_for_which_process_it_is_and_says_it_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock goes on by 10 s with each look: 200 s of waiting are said at 30 and at 120 s."""
    monkeypatch.setattr(work_sharing, "POLL_SECONDS", 0.0)
    clock = [0.0]
    monkeypatch.setattr(work_sharing.time, "monotonic", lambda: clock[0])
    log, others = Log(), {2}

    def idle() -> None:
        clock[0] += 10
        if clock[0] == 200:
            others.add(1)

    with Leases(tmp_path).claim("piece-1") as ours:
        assert ours and work(tmp_path, log, others, idle=idle).take_part(Part(), wait=True) == []
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in said] == [f"waiting for piece-1 since {n} s" for n in (30, 120)]
    assert all(f"process {os.getpid()} on " in line and "works on it" in line for line in said)


def test_without_a_common_disk_every_piece_is_free(tmp_path: Path) -> None:
    log = Log()
    shared = work(tmp_path, log, {1})
    assert SharedWork(shared.pieces, None, shared.is_done, shared.do, shared.seen).take_part(Part(), wait=True) == []
    assert log.done == [0, 2] and log.seen == [1]


@pytest.mark.parametrize(("n", "count"), [(0, 1), (1, 3), (10, 1), (10, 3), (11, 4)])
def test_parts_are_disjoint_and_who_helps_begins_at_the_other_end(n: int, count: int) -> None:
    parts = [Part(i, count) for i in range(count)]
    assert sorted(i for part in parts for i in part.indices(n)) == list(range(n))
    for part in parts:
        own = list(part.indices(n))
        assert sorted(part.order(n)) == list(range(n)) and part.order(n)[: len(own)] == own
        if count > 1:
            following = list(parts[(part.index + 1) % count].indices(n))
            assert part.order(n)[len(own) : len(own) + len(following)] == following[::-1]
