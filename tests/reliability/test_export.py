"""An export that is killed, refused by the disk, raced, stopped, or taken up by others gives the same dataset."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.crash_points import (
    DONE,
    Places,
    in_child,
    leftovers,
    stopped_everywhere,
    summary,
    tree,
    without_waiting,
)
from support.hostile_images import change, write_hostile
from support.tiny_export import N_SHARDS, N_TRAIN, N_VALIDATION, encodings, logged_export

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import read_manifest
from foundation.errors import Interrupted, TesseraError
from foundation.hardware import TokenAccess
from foundation.images.sources import FolderSource
from foundation.storage import durable
from pipeline.encoding.export import Export
from pipeline.encoding.plan import EncodeConfig
from pipeline.work_sharing import Part


@pytest.fixture(scope="module")
def clean(frozen: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of an export that nothing happened to."""
    folder = tmp_path_factory.mktemp("clean")
    assert logged_export(frozen, folder)
    splits = open_splits(folder)
    assert len(splits["train"]) == 2 * N_TRAIN and len(splits["validation"]) == N_VALIDATION
    assert len(encodings(folder)) == N_SHARDS
    return tree(folder / "codes")


def open_splits(folder: Path) -> dict[str, TokenDataset]:
    """Both splits, verified; a TesseraError while the dataset is not finished."""
    access = TokenAccess(form="memory")
    return {split: TokenDataset(folder / "codes", split, access) for split in ("train", "validation")}


def require_nothing_torn(folder: Path, clean: dict[str, str]) -> bool:
    """Every published file is right, a reader gets the whole dataset or a refusal; returns whether it is finished."""
    for name, sha256 in tree(folder / "codes").items():
        assert clean.get(name) == sha256, name
    try:
        splits = open_splits(folder)
    except TesseraError:
        return False
    assert len(splits["train"]) == 2 * N_TRAIN and len(splits["validation"]) == N_VALIDATION
    return True


def require_finished(folder: Path, clean: dict[str, str]) -> None:
    """No image is lost or twice in it, nothing is left over, and no finished file was encoded again."""
    assert require_nothing_torn(folder, clean)
    assert tree(folder / "codes") == clean
    for split in open_splits(folder).values():
        rows = Counter(zip(split.image_ids, split.views_N.tolist(), strict=True))
        assert set(rows.values()) == {1}
    again = [name for name, finished in encodings(folder) if finished]
    assert not again, again
    for place in (folder / "codes", *(folder / "codes" / "data").iterdir()):
        durable.sweep(place)
    assert not leftovers(folder)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_an_export_survives_a_fault_at_every_durable_operation(
    tmp_path: Path, frozen: Path, clean: dict[str, str], keep: Callable, every: int
) -> None:
    places, outcomes, encoded_again = Places(tmp_path / "places"), [], 0
    for outcome in stopped_everywhere(places.new, partial(logged_export, frozen), every=every):
        outcomes.append(outcome)
        require_nothing_torn(outcome.place, clean)
        assert in_child(partial(logged_export, frozen, outcome.place)) == DONE, outcome
        require_finished(outcome.place, clean)
        encoded_again += len(encodings(outcome.place)) - N_SHARDS
        assert len(encodings(outcome.place)) <= N_SHARDS + 1, "more than the file being written was done twice"
    figures = {
        "torn, lost or twice": 0,
        "finished files encoded again": 0,
        "unfinished files encoded again": encoded_again,
    }
    keep("exports all or nothing", **summary(outcomes), **figures)


@pytest.mark.parametrize("n_kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_three_racing_exporters_that_are_killed_at_random(
    tmp_path: Path, frozen: Path, clean: dict[str, str], keep: Callable, n_kills: int
) -> None:
    rng, kills, builds, begun = random.Random(0), 0, 0, 0
    while kills < n_kills:
        builds += 1
        folder = tmp_path / f"{builds}"
        folder.mkdir()
        at_most = min(n_kills - kills, 12)
        while at_most and not (folder / "codes" / "manifest.json").exists():
            racing = [without_waiting(partial(logged_export, frozen, folder, Part(i, 3))) for i in range(3)]
            for _ in range(rng.randrange(1, 4)):
                time.sleep(rng.uniform(0.02, 0.25))
                victim = rng.choice(racing)
                if at_most and os.waitpid(victim, os.WNOHANG) == (0, 0):
                    os.kill(victim, signal.SIGKILL)
                    os.waitpid(victim, 0)
                    racing.remove(victim)
                    kills, at_most = kills + 1, at_most - 1
                    require_nothing_torn(folder, clean)
                elif at_most:
                    racing.remove(victim)
                if not racing:
                    break
            for each in racing:
                status = os.waitstatus_to_exitcode(os.waitpid(each, 0)[1])
                assert status == DONE, status
        assert in_child(partial(logged_export, frozen, folder)) == DONE
        require_finished(folder, clean)
        begun += len(encodings(folder)) - N_SHARDS
    figures = {"torn, lost or twice": 0, "finished files encoded again": 0, "unfinished files encoded again": begun}
    keep("racing exporters", kills=kills, builds=builds, exporters="3", **figures)


@pytest.mark.parametrize("numbers", [(1, 3, 2), (3, 1), (2, 8, 1)])
def test_any_number_of_processes_in_any_order_write_the_same(
    tmp_path: Path, frozen: Path, clean: dict[str, str], keep: Callable, numbers: tuple[int, ...]
) -> None:
    """All but the last generation get a stop signal after their first file."""

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    for generation, n in enumerate(numbers):
        last = generation == len(numbers) - 1
        done = (lambda: None) if last else stop
        racing = [without_waiting(partial(_stopped, frozen, tmp_path, Part(i, n), done)) for i in range(n)]
        statuses = {os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in racing}
        assert statuses == {DONE}, statuses
    require_finished(tmp_path, clean)
    keep("any number of exporters", **{"orders of processes": 1, "other datasets": 0})


def _stopped(frozen: Path, folder: Path, part: Part, done: Callable[[], None]) -> None:
    try:
        logged_export(frozen, folder, part, done)
    except Interrupted as stopped:
        assert stopped.signal_number == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_export_told_to_stop_stops_within_a_batch_and_goes_on_later(
    tmp_path: Path, frozen: Path, clean: dict[str, str], number: signal.Signals, keep: Callable
) -> None:
    seen = []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        logged_export(frozen, tmp_path, before_publishing=stop)
    assert caught.value.signal_number == number
    assert len(encodings(tmp_path)) <= 3
    require_nothing_torn(tmp_path, clean)
    assert not list((tmp_path / "codes" / ".leases").glob("*.json"))
    assert logged_export(frozen, tmp_path)
    require_finished(tmp_path, clean)
    keep("stop signals", **{"exports stopped and continued": 1})


def test_a_thousand_hostile_images_are_encoded_or_listed(tmp_path: Path, frozen: Path, keep: Callable) -> None:
    expected = write_hostile(tmp_path / "images", 1000)

    def work() -> None:
        source = FolderSource(str(tmp_path / "images"))
        change(tmp_path / "images")
        config = EncodeConfig(batch_size=16, images_per_shard=128)
        one = Export(frozen, {"train": source}, tmp_path / "codes", config, torch.device("cpu"))
        assert one.take_part(quiet=True)

    assert in_child(work) == DONE
    entry = read_manifest(tmp_path / "codes")["splits"]["train"]
    failed = {each["image_id"]: each["code"] for each in entry["failures"]}
    assert entry["rows"] + len(failed) == 1000 == len(expected)
    assert set(failed) <= set(expected) and all(failed.values())
    for name, (kind, codes) in expected.items():
        assert codes is None or failed.get(name) in (codes or {None}), (kind, failed.get(name))
    keep("hostile images", **{"written or listed by an export": 1000, "planned": 1000})
