"""A shard that was saved again: read with a warning if its rows are the same, else refused without harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from support.token_folders import write_tokens

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import MANIFEST
from foundation.codes.shards import shard_path
from foundation.errors import DataError
from foundation.hardware import TokenAccess
from foundation.storage.serialization import json_text, read_json

FORMS = [TokenAccess(form="memory"), TokenAccess(form="packed"), TokenAccess(form="streamed")]


def by_pandas(path: Path) -> None:
    pd.read_parquet(path).to_parquet(path)


def by_pyarrow(path: Path) -> None:
    pq.write_table(pq.read_table(path, partitioning=None), path, compression="snappy")


def by_datasets(path: Path) -> None:
    Dataset(pq.read_table(path, partitioning=None)).to_parquet(path)


def as_large_lists(path: Path) -> None:
    """As polars writes lists."""
    rows = pq.read_table(path, partitioning=None)
    codes = rows["codes"].cast(pa.large_list(pa.int64()))
    pq.write_table(rows.set_column(0, "codes", codes).replace_schema_metadata(), path)


@pytest.mark.parametrize("save", [by_pandas, by_pyarrow, by_datasets, as_large_lists])
@pytest.mark.parametrize("access", FORMS, ids=lambda access: access.form)
def test_the_same_rows_are_read_with_a_warning(
    save: Callable[[Path], None], access: TokenAccess, tmp_path: Path
) -> None:
    folder = write_tokens(tmp_path, (70, 9))
    truth = TokenDataset(folder)
    save(shard_path(folder, "train", 0))
    with pytest.warns(UserWarning, match=r"part-00000.parquet was saved again(.|\n)*rows are the same"):
        found = TokenDataset(folder, "train", access)
        assert np.array_equal(found.codes_NT, truth.codes_NT)
    assert list(found.image_ids) == list(truth.image_ids) and np.array_equal(found.labels_N, truth.labels_N)


def change(path: Path, rows: int, keep: int | None = None) -> None:
    frame = pd.read_parquet(path)
    for row in range(rows):
        frame.at[row, "codes"] = (frame.at[row, "codes"] + 1) % 1000
    frame.iloc[:keep].to_parquet(path)


@pytest.mark.parametrize(
    ("rows", "keep", "said"),
    [
        (1, None, "up to 64 of 140 rows differ, the first in rows 0..63"),
        (65, None, "up to 128 of 140 rows differ"),
        (0, 100, "100 rows(.|\n)*140 rows"),
    ],
)
def test_other_rows_are_counted_and_nothing_is_to_be_deleted(
    rows: int, keep: int | None, said: str, tmp_path: Path
) -> None:
    folder = write_tokens(tmp_path, (70, 9))
    change(shard_path(folder, "train", 0), rows, keep)
    for access in FORMS:
        with pytest.raises(DataError, match=said) as error:
            np.asarray(TokenDataset(folder, "train", access).codes_NT)
        assert "restore" in str(error.value) and "--codes" in str(error.value)
        assert "delete" not in str(error.value) and "remove" not in str(error.value)


def test_a_manifest_of_an_earlier_version_cannot_tell(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path, (5,))
    manifest = read_json(folder / MANIFEST, (), fix="")
    for each in manifest["splits"]["train"]["files"]:
        each.pop("content"), each.pop("blocks"), each.pop("bytes")
    (folder / MANIFEST).write_bytes(json_text(manifest))
    assert len(TokenDataset(folder)) == 10
    by_pandas(shard_path(folder, "train", 0))
    with pytest.raises(DataError, match=r"saved again|bytes are not"):
        TokenDataset(folder)


def test_a_file_beside_the_shards_is_named(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path, (5, 3))
    for name in ("train/mine.parquet", "test/part-00000.parquet"):
        extra = folder / "data" / name
        extra.parent.mkdir(exist_ok=True)
        extra.write_bytes(shard_path(folder, "train", 0).read_bytes())
        with pytest.raises(DataError, match=rf"{name}: is not in the dataset's manifest(.|\n)*move it"):
            TokenDataset(folder)
        extra.unlink()
    (folder / "data" / "train" / ".DS_Store").write_bytes(b"x")
    assert len(TokenDataset(folder)) == 16
