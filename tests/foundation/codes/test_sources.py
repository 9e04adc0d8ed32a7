"""Codes of any form that people have give the rows that were saved, or an error that says the way out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_folders import token_spec, write_tokens

from foundation.codes.dataset import TokenDataset
from foundation.codes.sources import CodeRows, open_codes
from foundation.errors import DataError

CODES = np.random.default_rng(0).integers(0, 50, (7, 2, 3))
FLAT = CODES.reshape(7, 6)
Save = Callable[[Path], None]


def rows_of(rows: CodeRows) -> list:
    return rows.read(0, rows.n_rows).codes.reshape(rows.n_rows, -1).tolist()


def nested(kind: pa.DataType) -> pa.Array:
    return pa.array(CODES.tolist(), kind)


TABLES: dict[str, Any] = {
    "flat lists": pa.array(FLAT.tolist()),
    "fixed-size lists": pa.array(FLAT.tolist(), pa.list_(pa.uint16(), 6)),
    "large lists": pa.array(FLAT.tolist(), pa.large_list(pa.int8())),
    "nested lists": nested(pa.list_(pa.list_(pa.int64()))),
    "nested fixed lists": nested(pa.list_(pa.list_(pa.uint8(), 3), 2)),
    "chunks": pa.chunked_array([FLAT[:3].tolist(), [], FLAT[3:].tolist()], pa.list_(pa.int32())),
    "unsigned 64": pa.array(FLAT.tolist(), pa.list_(pa.uint64())),
}
ARRAYS: dict[str, np.ndarray] = {
    "grids": CODES,
    "flat": FLAT,
    "uint8": CODES.astype(np.uint8),
    "big-endian": CODES.astype(">u4"),
    "fortran order": np.asfortranarray(CODES),
    "signed": CODES.astype(np.int16),
}


@pytest.mark.parametrize("name", TABLES)
def test_columns_of_every_kind(name: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"codes": TABLES[name]}), tmp_path / "x.parquet", row_group_size=2)
    (rows,) = open_codes(tmp_path / "x.parquet")
    assert rows_of(rows) == FLAT.tolist() and rows.shape == ((2, 3) if "nested" in name else (6,))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_arrays_of_every_kind(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    np.save(path, ARRAYS[name]) if ending == "npy" else np.savez(path, ARRAYS[name])
    (rows,) = open_codes(path)
    codes = rows.read(2, 5).codes
    assert np.array_equal(codes, ARRAYS[name][2:5]) and codes.dtype.isnative and codes.flags.c_contiguous


def test_labels_ids_and_views_come_along(tmp_path: Path) -> None:
    labels, ids = ["a", "b", "010", "yes", "a", "a", "null"], [f"{i}.png" for i in range(7)]
    pd.DataFrame({"codes": FLAT.tolist(), "label": labels, "image_id": ids}).to_parquet(tmp_path / "x.parquet")
    np.savez(tmp_path / "x.npz", codes=FLAT, label=np.array(labels), image_ids=np.array(ids), views=np.zeros(7, int))
    for ending in ("parquet", "npz"):
        block = open_codes(tmp_path / f"x.{ending}")[0].read(0, 7)
        assert block.labels == labels and block.image_ids == ids


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_slice_of_any_row_groups_is_that_slice(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any))
    codes = np.arange(sum(sizes) * 4).reshape(-1, 4)
    starts = np.cumsum([0, *sizes])
    for i, (start, stop) in enumerate(itertools.pairwise(starts)):
        table = pa.table({"codes": pa.array(codes[start:stop].tolist(), pa.list_(pa.int32()))})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=data.draw(st.integers(1, 4)))
    (rows,) = open_codes(folder)
    start = data.draw(st.integers(0, rows.n_rows))
    stop = data.draw(st.integers(start, rows.n_rows))
    assert (
        rows.n_rows == len(codes)
        and rows.read(start, stop).codes.ravel().tolist() == codes[start:stop].ravel().tolist()
    )


def test_what_datasets_saves(tmp_path: Path) -> None:
    features = Features({"codes": List(Value("uint16"), length=6), "label": ClassLabel(names=["cat", "dog"])})
    whole = Dataset.from_dict({"codes": FLAT.tolist(), "label": [0, 1, 1, 0, 1, 0, 0]}, features=features)
    chosen = whole.filter(lambda row: row["label"] == 1).shuffle(seed=0)
    chosen.save_to_disk(tmp_path / "one")
    (rows,) = open_codes(tmp_path / "one")
    assert rows.class_names == ("cat", "dog") and rows_of(rows) == [list(each) for each in chosen["codes"]]
    DatasetDict(train=whole, test=chosen).save_to_disk(tmp_path / "several")
    assert {each.split: each.n_rows for each in open_codes(tmp_path / "several")} == {"train": 7, "test": 3}
    whole.to_parquet(tmp_path / "x.parquet")
    assert open_codes(tmp_path / "x.parquet")[0].class_names == ("cat", "dog")
    grids = Dataset.from_dict({"codes": CODES.tolist()}, features=Features({"codes": Array2D((2, 3), "int32")}))
    grids.save_to_disk(tmp_path / "grids")
    assert open_codes(tmp_path / "grids")[0].shape == (2, 3)


def test_a_token_dataset_its_run_and_its_files(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "run" / "codes", (5, 3))
    (tmp_path / "run" / "recipe.yaml").write_text("name: x")
    expected = TokenDataset(folder)
    for source in (folder, tmp_path / "run", folder / "data"):
        (rows,) = open_codes(source)
        assert rows.spec == token_spec() and rows.class_names == ("cat", "dog")
        assert rows_of(rows) == expected.codes_NT.tolist()
    assert open_codes(folder)[0].identity != open_codes(write_tokens(tmp_path / "other", (5, 3), seed=1))[0].identity


def test_splits_of_parquet_files_by_folder_or_name(tmp_path: Path) -> None:
    table = pa.table({"codes": FLAT.tolist()})
    for name in (
        "a/train-00000-of-00001.parquet",
        "a/test-00000-of-00001.parquet",
        "b/validation/x.parquet",
        "b/train/y.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / name)
    assert {each.split for each in open_codes(tmp_path / "a")} == {"train", "test"}
    assert {each.split for each in open_codes(tmp_path / "b")} == {"train", "validation"}
    pq.write_table(table, tmp_path / "b" / "more.parquet")
    with pytest.raises(DataError, match=r"more.parquet: names no split(.|\n)*train, validation"):
        open_codes(tmp_path / "b")


def text_file(name: str) -> Save:
    return lambda folder: (folder / name).write_text("x") and None


def table_file(column: Any, name: str = "codes") -> Save:
    return lambda folder: pq.write_table(pa.table({name: column}), folder / "x.parquet")


def array_file(array: np.ndarray) -> Save:
    return lambda folder: np.save(folder / "x.npy", array, allow_pickle=True)


@pytest.mark.parametrize(
    ("save", "file", "said"),
    [
        (text_file("x.jsonl"), "x.jsonl", r"load_dataset\('json'"),
        (text_file("x.pt"), "x.pt", r"torch.load\(FILE, weights_only=True\).numpy"),
        (text_file("x.csv"), "x.csv", "numpy.loadtxt"),
        (text_file("x.bin"), "x.bin", "a token dataset"),
        (text_file("x.parquet"), "x.parquet", "cannot be read as parquet"),
        (text_file("x.npy"), "x.npy", "cannot be read as NumPy arrays"),
        (text_file("x.txt"), "", "holds no codes"),
        (text_file("plan.json"), "", "not complete"),
        (text_file("recipe.yaml"), "", "no such token dataset"),
        (text_file("x.txt"), "gone", "no such folder or file"),
        (table_file([[1, 2], [3]]), "x.parquet", "several lengths(.|\n)*lengths 1, 2"),
        (table_file([[[1, 2], [3]]]), "x.parquet", "several lengths"),
        (table_file([[1.0, 2.0]]), "x.parquet", "fractions"),
        (table_file([["a"]]), "x.parquet", "holds no codes"),
        (table_file([[True, False]]), "x.parquet", "holds no codes"),
        (table_file([1, 2]), "x.parquet", "holds no codes"),
        (table_file([[1, None]]), "x.parquet", "missing values"),
        (table_file([[1, 2], None]), "x.parquet", "missing values"),
        (table_file([[1, 2]], "tokens"), "x.parquet", "no column codes(.|\n)*tokens"),
        (table_file(pa.array([], pa.list_(pa.int32()))), "x.parquet", "holds no rows"),
        (array_file(np.zeros((0, 4), int)), "x.npy", "holds no rows"),
        (array_file(np.zeros((3, 4))), "x.npy", "astype"),
        (array_file(np.zeros((3, 4), bool)), "x.npy", "codes of 0 and 1"),
        (array_file(np.zeros(4, int)), "x.npy", r"codes\[None\]"),
        (array_file(np.zeros((1, 2, 2, 2, 2), int)), "x.npy", "rows of codes"),
        (array_file(np.array([{}], object)), "x.npy", "allow_pickle=False"),
        (lambda folder: np.savez(folder / "x.npz", a=FLAT, b=FLAT), "x.npz", "unknown names"),
        (lambda folder: np.savez(folder / "x.npz", codes=FLAT, labels=np.zeros(3)), "x.npz", "another length"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_out(save: Save, file: str, said: str, tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(DataError, match=said):
        rows = open_codes(tmp_path / file)
        rows[0].read(0, rows[0].n_rows)
