"""Batches of streamed images: the same with any number of workers and processes, from any step on, whatever fails."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.faulty_server import FaultyServer, serving
from support.streamed_sets import N_IMAGES, files_below, write_archives, write_parquet_files

from foundation.images.config import Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.source_config import ArchiveData, DatasetData, DataSource
from foundation.images.sources import open_sources
from foundation.storage import retrying
from foundation.storage.remote import objects
from foundation.training.loading import BatchShare, read_batches

BATCH, STEPS, WINDOW = 20, 20, 64


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    monkeypatch.setattr(objects, "TIMEOUT_S", 0.5)


def opened(source: DataSource) -> ImageSet:
    return ImageSet(open_sources(source)[0], Preprocess(height=8, width=8), cache_mib=0, window=WINDOW)


def batches(images: ImageSet, start: int = 0, rank: int = 0, world: int = 1, workers: int = 0) -> list[np.ndarray]:
    """The pixels of each step from ``start`` on: two epochs in all."""
    share = BatchShare(BATCH, rank, world)
    read = read_batches(images, share, seed=3, start=start, end=STEPS, workers=workers)
    return [each["images"].numpy() for each in read]


@pytest.mark.parametrize("kind", ["archives", "tables"])
def test_batches_from_a_store_do_not_depend_on_workers_processes_or_the_first_step(tmp_path: Path, kind: str) -> None:
    write_archives(tmp_path / "sets" / "archives")
    write_parquet_files(tmp_path / "sets" / "tables")
    local: dict[str, DataSource] = {
        "archives": ArchiveData(path=str(tmp_path / "sets" / "archives")),
        "tables": DatasetData(path=str(tmp_path / "sets" / "tables"), streaming=True),
    }
    whole = batches(opened(local[kind]))
    for epoch in (whole[: STEPS // 2], whole[STEPS // 2 :]):
        counted = Counter(image.tobytes() for batch in epoch for image in batch)
        assert len(counted) == N_IMAGES and set(counted.values()) == {1}
    served = FaultyServer(dict(files_below(tmp_path / "sets")), share=0.2)
    with serving(served) as address:
        stored: dict[str, DataSource] = {
            "archives": ArchiveData(path=f"{address}/archives/train-{{0000..0004}}.tar"),
            "tables": DatasetData(path=f"{address}/tables/*.parquet"),
        }
        with_workers = batches(opened(stored[kind]), workers=2)
        resumed = batches(opened(stored[kind]), start=13, workers=1)
        shares = [batches(opened(stored[kind]), rank=rank, world=2) for rank in range(2)]
    assert all(np.array_equal(*each) for each in zip(whole, with_workers, strict=True))
    assert all(np.array_equal(*each) for each in zip(whole[13:], resumed, strict=True))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert np.array_equal(batch, np.concatenate(parts))
