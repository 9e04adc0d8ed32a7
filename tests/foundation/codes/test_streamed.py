"""Columns that read when they are indexed look like the arrays that they stand for."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.token_folders import write_tokens

from foundation.codes.columns import StoredColumn
from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import open_split
from foundation.codes.shards import ROW_GROUP
from foundation.codes.streamed import RowGroups, ShardColumn, stream_columns
from foundation.hardware import TokenAccess

IMAGES = (ROW_GROUP, 30, ROW_GROUP // 2 + 3)  # of two views each: shards of 2, 1 and 2 row groups


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokens(tmp_path, IMAGES)


@pytest.mark.parametrize("form", ["packed", "streamed"])
def test_it_is_indexed_like_an_array(folder: Path, form: str) -> None:
    truth = TokenDataset(folder).codes_NT
    column = TokenDataset(folder, "train", TokenAccess(form=form)).codes_NT  # type: ignore[arg-type]
    assert isinstance(column, StoredColumn)
    assert (
        column.shape == truth.shape and column.dtype == truth.dtype and column.ndim == 2 and len(column) == len(truth)
    )
    rng, n = np.random.default_rng(0), len(truth)
    numbers = (
        0,
        -1,
        np.int64(5),
        [3, 1, 3],
        rng.integers(-n, n, 500),
        np.array([[1, 2], [n - 1, 0]]),
        np.empty(0, int),
    )
    slices = (slice(None), slice(4090, 4100), slice(None, None, -997), slice(9, 3))
    for rows in (*numbers, *slices, rng.random(n) < 0.1):
        assert np.array_equal(column[rows], truth[rows]) and column[rows].shape == truth[rows].shape
        assert np.array_equal(column.reshape(n, 2, 3)[rows], truth.reshape(n, 2, 3)[rows])
    assert np.array_equal(np.asarray(column), truth)
    for wrong in (n, -n - 1, [0, n], np.ones(3, bool), (slice(None), 2)):
        with pytest.raises(IndexError):
            column[wrong]
    with pytest.raises(TypeError):
        column[[0.5]]
    with pytest.raises(ValueError, match="cannot read rows"):
        column.reshape(n, 7)


@pytest.mark.parametrize("limit_bytes", [1, 40_000, 10**9])
def test_no_more_row_groups_are_kept_than_allowed_and_rows_are_the_same(folder: Path, limit_bytes: int) -> None:
    truth, split = TokenDataset(folder), open_split(folder, "train")
    groups = RowGroups(split, limit_bytes)
    codes = ShardColumn(groups, "codes", truth.codes_NT.shape, truth.codes_NT.dtype)
    views = ShardColumn(groups, "view", (len(truth),), truth.views_N.dtype)
    for seed in range(10):
        rows = np.random.default_rng(seed).integers(0, len(truth), 64)
        assert np.array_equal(codes[rows], truth.codes_NT[rows]) and np.array_equal(views[rows], truth.views_N[rows])
        kept = [values.nbytes for values in groups._kept.values()]
        assert sum(kept) == groups._kept_bytes and (sum(kept) <= limit_bytes or len(kept) == 1)
    assert len(groups._kept) == {1: 1, 40_000: len(groups._kept), 10**9: 10}[limit_bytes]


def test_what_was_used_last_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = RowGroups(open_split(folder, "train"), 2 * ROW_GROUP)  # two full row groups of views
    decoded = []
    real = groups._decode
    monkeypatch.setattr(groups, "_decode", lambda *key: decoded.append(key[:2]) or real(*key))
    views = ShardColumn(groups, "view", (groups.split.rows,), np.dtype("u1"))
    for row in (0, ROW_GROUP, 0, 2 * ROW_GROUP + 60, 0, ROW_GROUP):  # groups A, B, A, C, A, B
        views[row]
    assert decoded == [(0, 0), (0, 1), (2, 0), (0, 1)]


def test_threads_read_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = TokenDataset(folder).codes_NT
    groups = RowGroups(open_split(folder, "train"), 1)
    codes, real = ShardColumn(groups, "codes", truth.shape, truth.dtype), groups._decode
    rows = [np.random.default_rng(seed).integers(0, len(truth), 50) for seed in range(40)]
    monkeypatch.setattr(groups, "_decode", lambda *key: time.sleep(0.001) or real(*key))  # lets others run between
    with ThreadPoolExecutor(8) as pool:
        for found, chosen in zip(pool.map(codes.__getitem__, rows), rows, strict=True):
            assert np.array_equal(found, truth[chosen])
    assert groups._kept_bytes == sum(each.nbytes for each in groups._kept.values())


def test_names_are_a_sequence_of_text(folder: Path) -> None:
    truth = TokenDataset(folder).image_ids
    ids = stream_columns(open_split(folder, "train"), 10**6).image_ids
    assert list(ids) == truth and len(ids) == len(truth) and ids[-1] == truth[-1] and isinstance(ids[0], str)
    assert ids[5:9] == truth[5:9] and "1/7.png" in ids and ids.index("1/7.png") == truth.index("1/7.png")
    with pytest.raises(IndexError):
        ids[len(truth)]
