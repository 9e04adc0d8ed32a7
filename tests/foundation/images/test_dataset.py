"""Rows of datasets: stable names, and what a cell may hold instead of an image."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.image_sets import usable

from foundation.errors import DataError
from foundation.images.config import Preprocess
from foundation.images.dataset import DatasetSource
from foundation.images.image_set import ImageSet
from foundation.images.source_config import DatasetData


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 6), value).save(buffer, "PNG")
    return buffer.getvalue()


def test_tar_archives_opened_by_datasets_are_named_by_archive_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``datasets`` finds in a repository of the hub, here in a folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "repository"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for i in range(3):
                for ending, data in (("png", png(10 * shard + i)), ("cls", b"%d" % (i % 2))):
                    info = tarfile.TarInfo(f"k{i}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    config = DatasetData(path=str(folder), image_column="png", label_column="cls")
    source = DatasetSource(config, "train")
    assert source.ids == [f"train/train-{shard}.tar/k{i}" for shard in range(2) for i in range(3)]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert [np.asarray(source.read(i))[0, 0] for i in (5, 0)] == [12, 0]


def test_what_a_cell_holds_instead_of_an_image_is_a_reason_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(png(3))
    (tmp_path / "link.png").symlink_to("there.png")
    cells = [
        {"bytes": png(1), "path": None},
        {"bytes": None, "path": str(tmp_path / "there.png")},
        {"bytes": None, "path": str(tmp_path / "link.png")},
        {"bytes": None, "path": str(tmp_path / "nowhere.png")},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"<html>", "path": "x"},
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "images.parquet")
    source = DatasetSource(DatasetData(path=str(tmp_path / "images.parquet")), "train")
    images = ImageSet(source, Preprocess(height=6, width=6))
    assert usable(images) == [f"train/{i:08d}" for i in range(3)] and len(images) == 8
    assert [each.code for each in images.failures] == ["missing", *["unreadable"] * 4]


def test_labels_outside_the_training_classes_are_named(tmp_path: Path) -> None:
    cells = [{"bytes": png(i), "path": None} for i in range(2)]
    pq.write_table(pa.table({"image": cells, "label": ["a", "z"]}), tmp_path / "images.parquet")
    config = DatasetData(path=str(tmp_path / "images.parquet"), label_column="label")
    with pytest.raises(DataError, match=r"training split lacks(.|\n)*z"):
        DatasetSource(config, "train", ("a", "b"))


def test_a_column_of_classes_that_is_not_used_is_named(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"image": Value("binary"), "kind": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"image": [png(1), png(2)], "kind": [0, 1]}, features=features)
    rows.to_parquet(str(tmp_path / "images.parquet"))
    config = DatasetData(path=str(tmp_path / "images.parquet"))
    (note,) = DatasetSource(config, "train").notes
    assert "column kind holds 2 classes" in note and "--data.source.label-column kind" in note
    assert not DatasetSource(replace(config, label_column="kind"), "train").notes
