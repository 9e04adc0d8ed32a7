"""The same images from a folder, tables and archives, on a disk and in a store that fails: each once an epoch."""

import pickle
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.faulty_server import FaultyServer, serving
from support.streamed_sets import (
    N_IMAGES,
    N_SHARDS,
    ROWS_IN_GROUP,
    files_below,
    put_in_memory,
    write_archives,
    write_folder,
    write_parquet_files,
)

from foundation.errors import ConfigError, DataError
from foundation.images.config import DataConfig, Preprocess
from foundation.images.failures import BadImage
from foundation.images.image_set import ImageSet, open_splits
from foundation.images.listing import ListedImages, ListedSource
from foundation.images.source_config import ArchiveData, DatasetData, DataSource, FolderData
from foundation.images.sources import ImageSource, open_sources
from foundation.storage import retrying
from foundation.storage.remote import objects, transfer
from foundation.storage.remote.errors import RemoteError

PREPROCESS = Preprocess(height=8, width=8)
TAR, TABLE = "train-{0000..0004}.tar", "train-*.parquet"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_folder(folder / "folder")
    write_archives(folder / "tars")
    write_parquet_files(folder / "tables")
    return folder


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, no pauses between tries, and small blocks."""
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    monkeypatch.setattr(transfer, "BLOCK_BYTES", 4096)


def opened(source: DataSource) -> ImageSource:
    return open_sources(source)[0]


def contents(source: ImageSource) -> Counter[tuple[bytes, str]]:
    """Pixels with class of each image, counted."""
    assert source.labels is not None
    pixels = [PREPROCESS(source.read(i)).tobytes() for i in range(len(source.ids))]
    return Counter(zip(pixels, (source.class_names[label] for label in source.labels), strict=True))


def local_sources(sets: Path) -> dict[str, DataSource]:
    return {
        "parquet": DatasetData(path=str(sets / "tables"), label_column="label"),
        "streaming parquet": DatasetData(path=str(sets / "tables"), label_column="label", streaming=True),
        "archives": ArchiveData(path=str(sets / "tars"), label_field="cls"),
    }


def remote_sources(address: str) -> dict[str, DataSource]:
    return {
        "archives": ArchiveData(path=f"{address}/tars/{TAR}", label_field="cls"),
        "tables": DatasetData(path=f"{address}/tables/{TABLE}", label_column="label"),
    }


def test_the_same_images_come_from_every_form_of_a_set(sets: Path) -> None:
    expected = contents(opened(FolderData(path=str(sets / "folder"))))
    assert len(expected) == N_IMAGES == sum(expected.values())
    found = {name: opened(each) for name, each in local_sources(sets).items()}
    memory = {f"memory {name}": opened(each) for name, each in remote_sources(put_in_memory(sets, "forms")).items()}
    for name, source in {**found, **memory}.items():
        assert contents(source) == expected, name
    assert found["streaming parquet"].ids == found["parquet"].ids == memory["memory tables"].ids
    assert found["archives"].ids == memory["memory archives"].ids


def test_a_folder_in_a_store_is_listed_and_its_splits_are_found_by_name(sets: Path) -> None:
    address = put_in_memory(sets, "folders")
    assert opened(ArchiveData(path=f"{address}/tars")).ids == opened(ArchiveData(path=str(sets / "tars"))).ids
    assert len(opened(DatasetData(path=f"{address}/tables")).ids) == N_IMAGES
    with pytest.raises(DataError, match=r"data.source.split: no such split(.|\n)*train"):
        opened(DatasetData(path=f"{address}/tables", split="tst"))
    with pytest.raises(DataError, match="no such files"):
        opened(ArchiveData(path=f"{address}/tables/*.tar"))


@pytest.mark.parametrize("seed", range(2))
def test_a_store_that_fails_loses_nothing_and_gives_nothing_twice(
    sets: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "TIMEOUT_S", 0.5)
    expected = contents(opened(FolderData(path=str(sets / "folder"))))
    served = FaultyServer(dict(files_below(sets)), share=0.25, seed=seed)
    with serving(served) as address:
        for name, each in remote_sources(address).items():
            images = ImageSet(opened(each), PREPROCESS, cache_mib=0)
            order = images.order(seed, 16)
            indices, _ = order.at(np.arange(N_IMAGES))
            pixels = Counter(image.tobytes() for image in images.pixels(indices))
            assert pixels == Counter({data: n for (data, _), n in expected.items()}), name
    assert sum(served.counts.values()) - served.counts["answered"] > 10, served.counts


class _OneWrongLook(FaultyServer):
    """Once ``wrong``, the next look at a file fails HEAD and is told half the size."""

    wrong = 0

    def fault(self) -> str:
        self.wrong -= 1
        return "halved" if self.wrong >= 0 else super().fault()


def test_one_wrong_size_of_a_gateway_is_not_another_file(sets: Path) -> None:
    served = _OneWrongLook(dict(files_below(sets)))
    with serving(served) as address:
        listed = objects.current(f"{address}/tars/train-0000.tar")
        served.wrong = 2
        assert objects.current(listed.address).size == listed.size // 2
        served.wrong = 2
        objects.require_same(listed)
        served.files["tars/train-0000.tar"] += bytes(512)
        with pytest.raises(RemoteError, match="is another file than when it was listed"):
            objects.require_same(listed)


def test_a_web_server_without_ranges_sends_each_file_whole_and_once(sets: Path) -> None:
    served = FaultyServer(dict(files_below(sets)), ranges=False)
    with serving(served) as address:
        source = opened(ArchiveData(path=f"{address}/tars/{TAR}", label_field="cls"))
        assert contents(source) == contents(opened(ArchiveData(path=str(sets / "tars"), label_field="cls")))
        assert len(served.gets) == N_SHARDS
        table = opened(DatasetData(path=f"{address}/tables/{TABLE}", label_column="label"))
        assert contents(table) == contents(opened(DatasetData(path=str(sets / "tables"), label_column="label")))
        assert len(served.gets) < N_SHARDS + 10


def test_few_images_of_a_large_file_are_read_in_ranges_and_many_by_way_of_the_cache(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundation.storage.remote.files._REQUEST_BYTES", 1000)
    monkeypatch.setattr(transfer, "BLOCK_BYTES", 1 << 20)
    served = FaultyServer(dict(files_below(sets)))
    with serving(served) as address:
        source = opened(ArchiveData(path=f"{address}/tars/train-0000.tar"))
        whole = next(tmp_path.glob("cache/streamed/*train-0000.tar"))
        whole.unlink()
        served.gets.clear()
        first = source.read(0)
        assert len(served.gets) == 1 and served.gets[0][1] > 0 and not whole.exists()
        for i in range(len(source.ids)):
            source.read(i)
        assert whole.exists() and len(served.gets) < len(source.ids)
        assert np.array_equal(np.asarray(first), np.asarray(source.read(0)))
        whole.unlink()  # as another process may, to make room
        assert np.array_equal(np.asarray(first), np.asarray(source.read(0)))


def test_a_second_start_reads_no_archive_and_no_footer(sets: Path) -> None:
    served = FaultyServer(dict(files_below(sets)))
    with serving(served) as address:
        ids = {name: list(opened(each).ids) for name, each in remote_sources(address).items()}
        served.gets.clear()
        for name, each in remote_sources(address).items():
            source = opened(each)
            assert list(source.ids) == ids[name] and source.labels is not None
            if name == "archives":
                assert not served.gets
        assert all(name.startswith("tables/") and len(served.gets) < 20 for name, _ in served.gets)


def test_a_file_that_is_replaced_or_removed_is_a_reason(sets: Path, tmp_path: Path) -> None:
    files = dict(files_below(sets))
    served = FaultyServer(files)
    with serving(served) as address:
        source = opened(ArchiveData(path=f"{address}/tars/{TAR}"))
        for whole in tmp_path.glob("cache/streamed/*.tar"):
            whole.unlink()
        served.files["tars/train-0000.tar"] = files["tars/train-0001.tar"]
        del served.files["tars/train-0001.tar"]
        last = [int(np.searchsorted(source.groups, i + 1)) for i in range(2)]  # type: ignore[attr-defined]
        codes = set()
        for index in (0, last[1], 45):
            with pytest.raises(BadImage) as refused:
                source.read(index)
            codes.add(refused.value.code)
        assert codes == {"changed", "vanished"}
        assert source.read(N_IMAGES - 1).size == (8, 8)


def test_a_streamed_table_reads_row_groups_on_demand_and_keeps_few(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundation.images.tables.row_groups._MEMORY_BYTES", 1)
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, i: int, **how: object) -> object:
        read.append(i)
        return whole(self, i, **how)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    source = opened(DatasetData(path=str(sets / "tables"), streaming=True))
    read.clear()
    for i in range(N_IMAGES):
        source.read(i)
    n_groups = len(source.groups)  # type: ignore[attr-defined]
    assert n_groups == 2 * -(-N_IMAGES // 2 // ROWS_IN_GROUP)
    assert len(read) <= n_groups, "in order, each row group is read once"
    for i in np.random.default_rng(0).permutation(N_IMAGES):
        source.read(int(i))
    assert len(read) <= 2 * n_groups, "in any order, each is unpacked once"
    assert len([*tmp_path.glob("cache/streamed/*")]) <= n_groups + 1
    for each in tmp_path.glob("cache/streamed/*.arrow"):
        each.write_bytes(each.read_bytes()[:100])  # the machine crashed
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(again.read(33)), np.asarray(source.read(33)))


def test_a_limit_and_a_held_out_part_keep_the_groups(sets: Path) -> None:
    stream = DatasetData(path=str(sets / "tables"), streaming=True, limit=50)
    table = DatasetData(path=str(sets / "tables"), limit=50)
    assert opened(stream).ids == opened(table).ids
    for source in (stream, ArchiveData(path=str(sets / "tars"))):
        splits = open_splits(DataConfig(source=source, validation_share=0.3))
        for each in splits.values():
            starts = each.groups  # type: ignore[attr-defined]
            names = [str(name) for name in each.ids]
            if isinstance(source, ArchiveData):
                shards = [name.split("/")[0] for name in names]
                assert starts.tolist() == [i for i in range(len(names)) if i == 0 or shards[i] != shards[i - 1]]
            assert starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < len(names)


def test_the_listing_of_a_run_keeps_the_groups_and_reads_ahead(sets: Path, tmp_path: Path) -> None:
    source = opened(ArchiveData(path=f"{put_in_memory(sets, 'listed')}/tars"))
    train = open_splits(DataConfig(source=ArchiveData(path=str(sets / "tars"))))["train"]
    listed = ListedSource(ListedImages.of(train), (), [source])
    assert np.array_equal(listed.groups, train.groups)  # type: ignore[arg-type,attr-defined]
    images = ImageSet(listed, PREPROCESS, cache_mib=0, window=64)
    for whole in tmp_path.glob("cache/streamed/*.tar"):
        whole.unlink()
    images.order(0, 16).at(np.arange(16))
    until = time.monotonic() + 30
    while len([*tmp_path.glob("cache/streamed/*.tar")]) < 2 and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert len([*tmp_path.glob("cache/streamed/*.tar")]) >= 2, "archives come before an image is asked for"


def test_the_window_is_said_or_follows_from_streaming(sets: Path) -> None:
    def settings(source: DataSource, window: int | None) -> tuple[object, ...]:
        return ImageSet(opened(source), PREPROCESS, window=window).order_settings

    tars = ArchiveData(path=str(sets / "tars"))
    assert settings(tars, None) == () == settings(FolderData(path=str(sets / "folder")), 50)
    assert settings(tars, 50)[0] == 50
    remote = ArchiveData(path=f"{put_in_memory(sets, 'window')}/tars")
    assert settings(remote, None)[0] == 16384 and settings(remote, 50) == settings(tars, 50)


def test_a_cache_that_does_not_hold_two_windows_is_refused(sets: Path) -> None:
    source, _ = open_sources(ArchiveData(path=f"{put_in_memory(sets, 'small')}/tars"), cache_gib=2.5e5 / 2**30)
    images = ImageSet(source, PREPROCESS, window=100)
    with pytest.raises(ConfigError, match=r"data.remote_cache_gib: is too small(.|\n)*shuffle_window"):
        images.order(0, 16)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "x.csv"}, "leave streaming out"),
        ({"path": "x.arrow"}, "leave streaming out"),
        ({"path": "memory://x/y.csv"}, "cannot be streamed"),
        ({"path": "memory://x/y.parquet", "revision": "main"}, "revision: is of the hub"),
        ({"path": "memory://x/y.parquet", "config_name": "a"}, "config_name: is of the hub"),
        ({"path": "memory://x/y.parquet", "split": "test"}, "one split, train"),
        ({"path": "nowhere.parquet"}, "no such file"),
    ],
)
def test_tables_without_access_by_row_are_refused_with_the_way_out(
    tmp_path: Path, source: dict[str, str], message: str
) -> None:
    (tmp_path / "x.csv").write_text("image\na.png\n", encoding="utf-8")
    (tmp_path / "x.arrow").write_bytes(b"ARROW1")
    path = source["path"] if "://" in source["path"] else str(tmp_path / source["path"])
    with pytest.raises(DataError, match=message):
        opened(DatasetData(**{**source, "path": path}, streaming=True))


def test_a_secret_in_an_address_is_refused_and_not_shown() -> None:
    for address in ("https://me:secret@host/a.tar", "s3://b/a.tar?X-Amz-Signature=secret"):
        with pytest.raises(ConfigError) as refused:
            ArchiveData(path=address)
        assert "secret@" not in str(refused.value) and "=secret" not in str(refused.value)
