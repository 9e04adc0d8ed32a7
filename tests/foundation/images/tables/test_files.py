"""The files of a split: all of them, and none of an earlier save."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
from support.image_tables import hub_clone, opened, png, reds, write_parquet

from foundation.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(*values: int) -> datasets.Dataset:
    cells = [{"bytes": png(value), "path": None} for value in values]
    return datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image())


def test_a_folder_of_save_to_disk_is_read_by_its_list(tmp_path: Path) -> None:
    rows(1, 2).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    (tmp_path / "saved/cache-0123.arrow").write_bytes((tmp_path / "saved/data-00000-of-00002.arrow").read_bytes())
    assert reds(opened(tmp_path / "saved")) == [1, 2]
    (tmp_path / "saved/data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"lacks files(.|\n)*data-00001-of-00002.arrow"):
        opened(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text("{")
    with pytest.raises(DataError, match=r"state.json: is damaged"):
        opened(tmp_path / "saved")


def test_splits_that_were_saved_together_are_opened_by_name(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": rows(1, 2), "test": rows(3)}).save_to_disk(str(tmp_path / "saved"))
    assert reds(opened(tmp_path / "saved", "test")) == [3]
    with pytest.raises(DataError, match=r"data.source.validation_split: no such split(.|\n)*test, train"):
        opened(tmp_path / "saved", "val", validation_split="val")


def test_splits_are_found_in_names_of_files_and_folders(tmp_path: Path) -> None:
    for name, value in (("data/train-0.parquet", 1), ("data/test-0.parquet", 2)):
        write_parquet(tmp_path / "a" / name, image=[png(value)])
    for name, value in (("train/x.parquet", 3), ("train/y.parquet", 4), ("validation/x.parquet", 5)):
        write_parquet(tmp_path / "b" / name, image=[png(value)])
    assert reds(opened(tmp_path / "a", "test")) == [2]
    assert reds(opened(tmp_path / "b")) == [3, 4] and reds(opened(tmp_path / "b", "validation")) == [5]
    assert reds(opened(tmp_path / "b", "train[:1]")) == [3]
    with pytest.raises(DataError, match=r"data.source.split: no such split(.|\n)*train, validation"):
        opened(tmp_path / "b", "dev")


@pytest.mark.parametrize("relative", [False, True])
def test_files_in_no_split_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train/x.parquet", "more/x.parquet"):
        write_parquet(tmp_path / "a" / name, image=[png(1)])
    here = Path() if relative else tmp_path
    assert [(each.kind, each.count) for each in opened(here / "a").passed_over.rows()] == [(".parquet", 1)]
    for name in ("cat", "dog"):
        (tmp_path / "b" / name).mkdir(parents=True)
        (tmp_path / "b" / name / "0.png").write_bytes(png(1))
    (tmp_path / "b/cat/1.heic").write_bytes(b"x")
    source = opened(here / "b", label_column="label")
    assert [(each.kind, each.example) for each in source.passed_over.rows()] == [(".heic", "1.heic")]


def test_compressed_text_tables_are_read_by_the_library(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "0.png").write_bytes(png(3))
    line = json.dumps({"image": str(tmp_path / "0.png")})
    (tmp_path / "a/train.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    assert reds(opened(tmp_path / "a")) == [3]


def test_numbered_files_are_complete_and_of_one_save(tmp_path: Path) -> None:
    folder = tmp_path / "numbered"
    for i in (0, 2):
        write_parquet(folder / f"train-0000{i}-of-00003.parquet", image=[png(i)])
    with pytest.raises(DataError, match=r"files of the split are missing(.|\n)*train-00001-of-00003"):
        opened(folder)
    write_parquet(folder / "train-00001-of-00003.parquet", image=[png(1)])
    assert reds(opened(folder)) == [0, 1, 2]
    write_parquet(folder / "train-00000-of-00001.parquet", image=[png(0)])
    with pytest.raises(DataError, match=r"files of two saves(.|\n)*of 1 and of 3 files"):
        opened(folder)


def test_a_configuration_is_chosen_by_name(tmp_path: Path) -> None:
    folder = hub_clone(tmp_path / "x", [1], ["a"])
    with pytest.raises(DataError, match=r"data.source.config_name(.|\n)*default"):
        opened(folder, config_name="other")
    assert reds(opened(folder, config_name="default")) == [1]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.tar", b"", "is a tar archive(.|\n)*type archives"),
        ("x.zip", b"PK\x03\x04", "is a packed archive(.|\n)*unpack it"),
        ("x.npz", b"PK\x03\x04", "is NumPy arrays(.|\n)*parquet file with an image column"),
        ("x.h5", b"", "is an HDF5 file"),
        ("x.tfrecord", b"", "is a TFRecord file"),
        ("x.png", png(1), r"is an image \(PNG\)(.|\n)*type folder"),
        ("x", b"%PDF", "is PDF, not a table"),
        ("x.txt", b"text", "is a file, not a table"),
    ],
)
def test_a_file_that_is_no_table_is_named_with_the_way_out(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        opened(tmp_path / name)


def test_folders_without_tables_are_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        opened(tmp_path)
    (tmp_path / "deep/x.txt").write_text("x")
    with pytest.raises(DataError, match="holds text files, not tables"):
        opened(tmp_path)


def test_a_parquet_file_without_an_ending_is_one(tmp_path: Path) -> None:
    assert reds(opened(write_parquet(tmp_path / "blob", image=[png(4)]))) == [4]
