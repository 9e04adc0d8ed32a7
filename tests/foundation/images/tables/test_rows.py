"""Rows come from the files that are there now, whatever was opened before; each file is whole."""

import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.image_tables import encoded, hub_clone, opened, png, reds, write_parquet

from foundation.errors import DataError
from foundation.images.source_config import DatasetData
from foundation.images.tables import rows
from foundation.images.tables.rows import open_rows


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=["in memory", "copied"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet files are read into memory, and large ones copied to the library's cache."""
    if request.param == "copied":
        monkeypatch.setattr(rows, "_IN_MEMORY_BYTES", 0)


@pytest.mark.usefixtures("_both_ways")
def test_folders_of_one_name_and_one_card_keep_their_rows(tmp_path: Path) -> None:
    one, two = hub_clone(tmp_path / "1/photos", [1, 2, 3], ["a"] * 3), hub_clone(tmp_path / "2/photos", [7], ["b"])
    first, second = opened(one, label_column="label"), opened(two, label_column="label")
    assert (reds(first), first.class_names) == ([1, 2, 3], ("a",))
    assert (reds(second), second.class_names) == ([7], ("b",))
    assert first.fingerprint != second.fingerprint


@pytest.mark.usefixtures("_both_ways")
def test_replaced_added_and_removed_files_are_seen(tmp_path: Path) -> None:
    folder = hub_clone(tmp_path / "photos", [1, 2], ["a", "b"])
    first = opened(folder)
    hub_clone(folder, [3, 4], ["a", "b"])
    replaced = opened(folder)
    write_parquet(folder / "data/train-more.parquet", image=[{"bytes": png(5), "path": None}], label=["c"])
    more = opened(folder)
    (folder / "data/train-00000-of-00001.parquet").unlink()
    less = opened(folder)
    assert [reds(each) for each in (first, replaced, more, less)] == [[1, 2], [3, 4], [3, 4, 5], [5]]
    assert len({each.fingerprint for each in (first, replaced, more, less)}) == 4
    assert opened(folder).fingerprint == less.fingerprint


def test_a_file_replaced_by_one_of_equal_size_and_time_is_another(tmp_path: Path) -> None:
    path, found = tmp_path / "x.parquet", []
    for value in (1, 2):
        pq.write_table(pa.table({"image": [encoded(Image.new("L", (6, 6), value), "BMP")]}), path, compression="none")
        os.utime(path, ns=(10**18, 10**18))
        found.append((path.stat().st_size, path.stat().st_mtime, opened(path).fingerprint, reds(opened(path))))
    assert found[0][:2] == found[1][:2] and found[0][2] != found[1][2] and found[1][3] == [2]


def test_a_moved_dataset_keeps_its_fingerprint(tmp_path: Path) -> None:
    folder = hub_clone(tmp_path / "a", [1, 2], ["a", "b"])
    fingerprint = opened(folder).fingerprint
    assert opened(folder.rename(tmp_path / "b")).fingerprint == fingerprint


def test_images_in_folders_opened_by_the_library_are_those_of_now(tmp_path: Path) -> None:
    for copy, value in (("1", 10), ("2", 20)):
        for name in ("cat", "dog"):
            (tmp_path / copy / "photos" / name).mkdir(parents=True)
            (tmp_path / copy / "photos" / name / "0.png").write_bytes(png(value))
    found = [opened(tmp_path / copy / "photos", label_column="label") for copy in ("1", "2")]
    assert [reds(each) for each in found] == [[10, 10], [20, 20]] and found[0].class_names == ("cat", "dog")
    (tmp_path / "1/photos/cat/1.png").write_bytes(png(30))
    assert reds(opened(tmp_path / "1/photos")) == [10, 30, 10]


def test_an_incomplete_copy_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_IN_MEMORY_BYTES", 0)
    path, real = write_parquet(tmp_path / "x.parquet", image=[png(1), png(2)]), datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: real(*a, **k).select([0]))
    with pytest.raises(DataError, match=r"was copied incompletely(.|\n)*1 rows(.|\n)*2, as the files say"):
        opened(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of Git LFS(.|\n)*git lfs pull"),
        (b"<!DOCTYPE html><html>", "is no parquet file, but an HTML page"),
        (b"PAR1" + bytes(40), "is not a complete parquet file(.|\n)*download or copy it again"),
        (b"", "is not a complete parquet file"),
    ],
)
def test_a_file_that_is_no_parquet_file_has_the_true_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        opened(tmp_path / "x.parquet")
    (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(DataError, match=reason.replace("parquet", "Arrow")):
        opened(tmp_path / "x.arrow")


def test_files_with_other_columns_and_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d/a.parquet", image=[png(1)])
    write_parquet(tmp_path / "d/b.parquet", image=[png(1)], label=["a"])
    with pytest.raises(DataError, match=r"other columns than the first file(.|\n)*b.parquet: image, label"):
        opened(tmp_path / "d")
    path = write_parquet(tmp_path / "x.parquet", jpg=[png(1)], caption=["a"])
    with pytest.raises(DataError, match=r"no such column(.|\n)*image_column jpg"):
        opened(path)


@pytest.mark.parametrize("path", ["nowhere/x.parquet", "./nowhere", "a/b/c", "C:\\x\\y", "x.csv"])
def test_what_is_no_file_and_no_name_of_the_hub_is_not_asked_of_the_hub(path: str) -> None:
    with pytest.raises(DataError, match=r"data.source.path: no such file or folder"):
        open_rows(DatasetData(path=path), "train")


def test_a_name_of_the_hub_keeps_its_revision_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, name: str | None, **options: object) -> datasets.Dataset:
        asked.append((path, options["revision"]))
        rows = datasets.Dataset(pa.table({"image": [png(3)]}))
        rows.info.download_checksums = {f"hf://datasets/{path}@{options['revision']}/x": {}}
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    one, two = (open_rows(DatasetData(path="org/name", revision=each), "train") for each in ("v1", "v2"))
    assert asked == [("org/name", "v1"), ("org/name", "v2")] and one.fingerprint != two.fingerprint
    with pytest.raises(DataError, match=r"data.source.revision: is of the hub"):
        open_rows(DatasetData(path="/tmp", revision="v1"), "train")
