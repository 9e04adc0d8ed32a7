from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.token_folders import token_spec, write_tokens

from foundation.codes.columns import StoredColumn, arrays_of, load_columns, memory_bytes
from foundation.codes.manifest import open_split


@pytest.mark.parametrize("labelled", [True, False])
def test_columns_in_memory_are_the_shards_one_after_the_other(labelled: bool, tmp_path: Path) -> None:
    split = open_split(write_tokens(tmp_path, (3, 5), spec=token_spec(labelled=labelled)), "train")
    columns, shards = load_columns(split), list(split.read())
    parts = [arrays_of(shard, split.spec) for shard in shards]
    assert np.array_equal(columns.codes_NT, np.concatenate([part["codes"] for part in parts]))
    assert np.array_equal(columns.views_N, np.concatenate([part["views"] for part in parts]))
    assert columns.image_ids == [name for shard in shards for name in shard.image_ids]
    assert (columns.labels_N is not None) == labelled and ("labels" in parts[0]) == labelled
    held = columns.codes_NT.nbytes + columns.views_N.nbytes + (columns.labels_N.nbytes if labelled else 0)
    assert held <= memory_bytes(split)


class Squares(StoredColumn):
    """Row i holds (i, i * i)."""

    def _read(self, rows_B: np.ndarray, values: np.ndarray) -> None:
        assert ((rows_B >= 0) & (rows_B < len(self))).all()
        values[:] = np.stack([rows_B, rows_B**2], axis=1)


@given(st.data())
def test_a_stored_column_is_indexed_by_rows_like_an_array(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    column, array = Squares((n, 2), np.dtype(np.int64)), np.stack([np.arange(n), np.arange(n) ** 2], axis=1)
    row = st.integers(-n, n - 1)
    rows = data.draw(st.one_of(row, st.slices(n), st.lists(row), st.lists(st.booleans(), min_size=n, max_size=n)))
    rows = np.array(rows, bool if rows and isinstance(rows[0], bool) else int) if isinstance(rows, list) else rows
    assert np.array_equal(column[rows], array[rows])
    assert np.array_equal(np.asarray(column), array) and column.reshape(n, 2, 1)[rows].shape == (*array[rows].shape, 1)


def test_rows_that_are_not_there_and_parts_of_rows_are_refused() -> None:
    column = Squares((3, 2), np.dtype(np.int64))
    for wrong in (3, [0, -4], (0, 1), np.array([True])):
        with pytest.raises(IndexError):
            column[wrong]
    with pytest.raises(ValueError, match="cannot read rows"):
        column.reshape(3, 3)
