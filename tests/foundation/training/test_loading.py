"""Batches: the same whatever reads them, from any step on; dead workers, errors, signals, little shared memory."""

import mmap
import multiprocessing
import os
import pickle
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from foundation.errors import DataError
from foundation.images.config import Augment, Preprocess
from foundation.images.failures import BadImage, Failure
from foundation.images.image_set import ImageSet
from foundation.images.sources import FolderSource
from foundation.randomness import DataOrder
from foundation.training import loading
from foundation.training import shared_batches as loading_memory
from foundation.training.heartbeat import VARIABLE
from foundation.training.loading import BatchShare, Steps, n_workers, read_batches

BATCH, END = 6, 9
Batch = dict[str, torch.Tensor]


@dataclass
class Numbers:
    """25 numbers; ``interfere`` is called with the indices of each batch, in the process that reads."""

    interfere: Callable[[np.ndarray], object] = lambda indices: None
    decodes: bool = True
    found: list[Failure] = field(default_factory=list)

    def __len__(self) -> int:
        return 25

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        self.interfere(indices)
        noise = np.random.default_rng([*indices, *epochs]).random((len(indices), 5), np.float32)
        return {"indices": torch.from_numpy(indices), "noise": torch.from_numpy(noise)}


class WithFailures(Numbers):
    """Numbers of which those from 20 on are reported as failures."""

    def take_failures(self) -> list[Failure]:
        taken, self.waiting = getattr(self, "waiting", []), []
        return taken

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        self.waiting = [Failure(str(index), "is large") for index in indices if index >= 20]
        return super().batch(indices, epochs)

    def add_failures(self, failures: list[Failure]) -> None:
        self.found += failures


def read(
    examples: Any, start: int = 0, end: int = END, share: BatchShare | None = None, workers: int | None = 0
) -> list:
    batches = read_batches(examples, share or BatchShare(BATCH), seed=3, start=start, end=end, workers=workers)
    return [{name: value.clone() for name, value in batch.items()} for batch in batches]


def equal(one: list[Batch], other: list[Batch]) -> bool:
    both = zip(one, other, strict=True)
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in both)


def children() -> set[int]:
    return {each.pid for each in psutil.Process().children(recursive=True)}


@pytest.fixture
def no_child_left() -> Iterator[None]:
    before = children()
    yield
    deadline = time.monotonic() + 5
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children() - before


@pytest.fixture
def photographs(tmp_path: Path) -> ImageSet:
    rng = np.random.default_rng(0)
    for i in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((80, 60)).save(tmp_path / f"{i}.jpg", quality=90)
    augment = Augment(crop="random_resized", flip=True)
    return ImageSet(FolderSource(str(tmp_path)), Preprocess(height=16, width=16), augment=augment, seed=1)


@pytest.mark.usefixtures("no_child_left")
def test_batches_are_the_same_with_any_number_of_workers_from_any_step(photographs: ImageSet) -> None:
    whole = read(photographs)
    assert [batch["images"].dtype for batch in whole] == [torch.uint8] * END
    assert [batch["positions"].tolist() for batch in whole] == np.arange(54).reshape(9, 6).tolist()
    for workers in (1, 2):
        assert equal(read(photographs, workers=workers), whole)
    assert equal(read(photographs, start=4, workers=2), whole[4:])
    for start in range(END):
        assert equal(read(photographs, start=start), whole[start:])


def test_one_process_two_and_one_again_read_the_same_samples() -> None:
    whole, start = read(Numbers()), 0
    for world, end in ((1, 3), (2, 7), (1, END)):
        parts = [read(Numbers(), start, end, BatchShare(BATCH, rank, world), workers=rank) for rank in range(world)]
        for step, batches in enumerate(zip(*parts, strict=True), start=start):
            joined = torch.cat([batch["indices"] for batch in batches])
            assert torch.equal(joined, whole[step]["indices"]), (world, step)
        start = end


def test_an_order_of_the_examples_takes_the_place_of_the_plain_one() -> None:
    class Backwards(Numbers):
        def order(self, seed: int, batch_size: int) -> Any:
            assert (seed, batch_size) == (3, BATCH)
            return self

        def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return 24 - positions % 25, positions // 25

    for workers in (0, 1):
        assert [each["indices"].tolist() for each in read(Backwards(), end=1, workers=workers)] == [
            [24, 23, 22, 21, 20, 19]
        ]
    plain = DataOrder(25, 3).at(np.arange(BATCH))[0]
    assert read(Numbers(), end=1)[0]["indices"].tolist() == plain.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_come_beside_the_batch_that_found_them(workers: int) -> None:
    examples, expected = WithFailures(), []
    batches = read_batches(examples, BatchShare(BATCH), seed=3, start=0, end=END, workers=workers)
    for batch in batches:
        expected += [str(each) for each in batch["indices"].tolist() if each >= 20]
        assert [each.image_id for each in examples.found] == expected
    assert len(expected) > 5


def test_reading_takes_nothing_from_the_random_numbers_of_training() -> None:
    for workers in (0, 1):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        read(Numbers(), end=2, workers=workers)
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.usefixtures("no_child_left")
def test_a_killed_worker_changes_no_batch_and_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    mark = tmp_path / "killed"

    def kill(indices: np.ndarray) -> None:
        if not mark.exists() and 7 in indices:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    whole = read(Numbers())
    assert equal(read(Numbers(kill), workers=2), whole) and mark.exists()
    said = capfd.readouterr().err
    assert said.count("was ended by SIGKILL (often because memory ran out); 2 new ones read on at step") == 1


def test_a_worker_that_is_killed_from_outside_changes_no_batch() -> None:
    before, batches = children(), []
    for batch in read_batches(Numbers(), BatchShare(BATCH), seed=3, start=0, end=60, workers=1):
        batches.append(batch)
        if len(batches) == 20:
            (worker,) = children() - before
            os.kill(worker, signal.SIGKILL)
    assert equal(batches, read(Numbers(), end=60))


@pytest.mark.slow  # torch looks at its workers every five seconds
@pytest.mark.usefixtures("no_child_left")
def test_workers_that_keep_dying_end_the_training_with_a_way_out() -> None:
    def kill(indices: np.ndarray) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"machine.workers: (.|\n)*SIGKILL(.|\n)*3 times(.|\n)*--machine.workers 0"):
        read(Numbers(kill), workers=1)


@pytest.mark.usefixtures("no_child_left")
def test_workers_that_hang_are_named_after_a_while_and_given_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(loading, "SAY_SECONDS", 0.5)
    monkeypatch.setattr(loading, "_LOOK_SECONDS", 0.1)
    monkeypatch.setenv(VARIABLE, "2")

    def hang(indices: np.ndarray) -> None:
        if 7 in indices:
            os.kill(os.getpid(), signal.SIGSTOP)

    with pytest.raises(
        DataError, match=r"machine.workers: (.|\n)*no batch(.|\n)*2 processes, at step(.|\n)*within 2 s"
    ):
        read(Numbers(hang), workers=2)
    assert re.search(r"waiting for \d s for the batch of step \d from 2 processes that read", capfd.readouterr().err)


class _Unportable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.usefixtures("no_child_left")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadImage("unreadable", "is cut", fix="copy it again"), BadImage),
        (MemoryError("too much"), MemoryError),
        (_Unportable(1, 2), None),
    ],
)
def test_an_error_arrives_as_it_was_raised(workers: int, error: Exception, kind: type | None) -> None:
    def fail(indices: np.ndarray) -> None:
        if 7 in indices:
            raise error

    with pytest.raises(kind or (_Unportable if not workers else RuntimeError)) as caught:
        read(Numbers(fail), workers=workers)
    if kind is not None:
        assert str(caught.value) == str(error) and vars(caught.value) == vars(error)
    assert str(error) in str(caught.value) and "DataLoader" not in str(caught.value)
    if workers:
        assert "in fail" in str(caught.value.__cause__), "where it happened"


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_an_unreadable_image_is_replaced_and_listed_alike_by_all_readers(cache_mib: int, photographs: ImageSet) -> None:
    folder = photographs._source.folder  # type: ignore[attr-defined]
    (folder / "4.jpg").write_bytes(b"no image")
    read_by = {}
    for workers in (0, 1, 2):
        images = ImageSet(FolderSource(str(folder)), photographs.preprocess, cache_mib=cache_mib, augment=Augment())
        read_by[workers] = read(images, workers=workers)
        assert [each.image_id for each in images.failures] == ["4.jpg"], workers
    assert equal(read_by[0], read_by[1]) and equal(read_by[0], read_by[2])


def test_too_many_unreadable_images_stop_the_training_and_are_named(photographs: ImageSet) -> None:
    folder = photographs._source.folder  # type: ignore[attr-defined]
    (folder / "4.jpg").write_bytes(b"no image")
    for workers in (0, 1):
        images = ImageSet(FolderSource(str(folder)), photographs.preprocess, max_failed_share=0.05, cache_mib=0)
        with pytest.raises(DataError, match=r"max_failed_share(.|\n)*4\.jpg"):
            read(images, workers=workers)


@pytest.mark.parametrize("how", ["the system refuses", "larger than a slot"])
def test_batches_that_cannot_be_shared_take_another_way_and_stay_the_same(
    how: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    whole = read(Numbers())
    if how == "larger than a slot":
        monkeypatch.setattr(loading_memory, "BYTES_OF_A_SLOT", mmap.PAGESIZE)
        assert equal(read(Numbers(), workers=2), whole) and not capfd.readouterr().err, "small ones are shared"
        monkeypatch.setattr(loading_memory, "_ALIGNED", mmap.PAGESIZE)
    else:
        monkeypatch.setattr(loading_memory, "SharedBatches", refuse)
    assert equal(read(Numbers(), workers=2), whole)
    assert capfd.readouterr().err.count("take a slower way") == 1


def refuse(n_slots: int) -> None:
    raise OSError("no memory")


def test_a_batch_of_any_kinds_of_tensors_comes_out_of_shared_memory_as_it_was() -> None:
    shared = loading_memory.SharedBatches(3)
    kinds = (torch.uint8, torch.uint16, torch.int64, torch.float32, torch.bfloat16, torch.bool)
    for number in range(5):
        batch = {str(kind): torch.arange(7 * number).reshape(7, number).to(kind) for kind in kinds}
        batch["one number"] = torch.tensor(0.5)
        batch["turned"] = torch.arange(12).reshape(3, 4).T
        stored = shared.store(number, batch)
        assert stored is not None
        taken = shared.take(stored, pinned=False)
        assert taken.keys() == batch.keys()
        for name, value in batch.items():
            assert taken[name].dtype == value.dtype and torch.equal(taken[name], value), name


def test_a_batch_that_was_written_over_is_not_taken_for_another() -> None:
    shared = loading_memory.SharedBatches(2)
    first, second = (shared.store(number, {"x": torch.tensor(number)}) for number in (0, 1))
    assert first is not None and second is not None
    shared.store(2, {"x": torch.tensor(2)})
    assert shared.take(second, pinned=False)["x"] == 1
    with pytest.raises(RuntimeError, match="batch 2 was written over batch 0"):
        shared.take(first, pinned=False)


def test_workers_are_started_where_images_are_decoded(monkeypatch: pytest.MonkeyPatch, photographs: ImageSet) -> None:
    in_memory = ImageSet(photographs._source, Preprocess(height=8, width=8))
    for cores, expected in ((1, 0), (6, 6)):
        monkeypatch.setattr(loading, "usable_cores", lambda cores=cores: cores)
        assert n_workers(photographs, None) == expected
        assert n_workers(in_memory, None) == 0
        assert n_workers(in_memory, 3) == 3 and n_workers(photographs, 0) == 0


def test_what_workers_need_travels_to_other_systems(photographs: ImageSet) -> None:
    steps = Steps(photographs, BatchShare(BATCH), 3, workers=0)
    there = pickle.loads(pickle.dumps(steps))
    assert torch.equal(there[2].batch["images"], steps[2].batch["images"])


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(DataError, match=r"batch_size(.|\n)*a multiple of 4"):
        BatchShare(BATCH, 0, 4)


class Slow(Numbers):
    """Tells which process reads, and takes its time."""

    def batch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        time.sleep(0.02)
        return {"pid": torch.tensor([os.getpid()])}


def train_for_long(told: Any) -> None:
    """Reads without end with two workers, and tells their process ids."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for batch in read_batches(Slow(), BatchShare(2), seed=0, start=0, end=10**6, workers=2):
        told.send(int(batch["pid"]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_signals_and_end_with_the_process_that_trains(number: int) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    main = context.Process(target=train_for_long, args=(there,))
    main.start()
    assert main.pid is not None
    workers = {psutil.Process(here.recv()) for _ in range(10)}
    assert len(workers) == 2 and main.pid not in {each.pid for each in workers}
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert all(worker.is_running() for worker in workers), "the process that trains may need their batches"
    os.kill(main.pid, number)
    main.join(10)
    assert main.exitcode == -number
    assert not psutil.wait_procs(list(workers), timeout=5)[1]
