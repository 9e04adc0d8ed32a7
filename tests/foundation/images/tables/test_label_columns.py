"""Columns of classes: text is kept as it is, and what is no class is named."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.image_tables import opened, png, write_parquet

from foundation.errors import DataError
from foundation.images.tables.label_columns import names_of

F = "data.source.label_column"


def names(values: Any) -> list[str]:
    column = values if isinstance(values, pa.Array) else pa.array(values)
    return names_of(pa.chunked_array([column]), F, "y")


@given(st.lists(st.text(min_size=1).map(str.strip).filter(bool), min_size=1, max_size=5))
def test_text_is_kept_as_it_is_however_it_is_stored(texts: list[str]) -> None:
    column = pa.array(texts, pa.string())
    views = [column.cast(kind) for kind in (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())]
    for each in (column, column.dictionary_encode(), *views):
        assert names(each) == texts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, -1], ["3", "-1"]),
        ([True, False], ["True", "False"]),
        ([1.0, 2.0], ["1", "2"]),
        (["010", "10"], ["010", "10"]),
    ],
)
def test_numbers_and_booleans_become_names(values: list[object], expected: list[str]) -> None:
    assert names(values) == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["a", None], "has empty cells(.|\n)*1, the first in row 1"),
        (["a", ""], "has empty cells"),
        ([1.0, float("nan")], "has empty cells"),
        ([1.5, 2.0], "floating point numbers that are not whole(.|\n)*1.5 in row 0"),
        ([float("inf")], "floating point numbers that are not whole"),
        ([["a"], ["b", "c"]], "holds no classes(.|\n)*several classes for an image are not supported"),
        ([{"id": 1, "name": "a"}], "holds no classes(.|\n)*y.id, y.name"),
        ([b"\xff"], "bytes that are no text"),
        (pa.array([1], pa.timestamp("s")), "holds no classes(.|\n)*write the classes as text"),
    ],
)
def test_what_is_no_class_has_the_true_reason(values: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        names(values)


def test_ids_captions_and_paths_are_hardly_classes_unless_that_is_said(tmp_path: Path) -> None:
    columns = {
        "id": [f"{i:012x}" for i in range(30)],
        "caption": ["a long caption," * 9] * 15 + ["another long caption;" * 9] * 15,
        "file": [f"{i % 9}.jpg" for i in range(30)],
        "meta": ['{"a": 1}'] * 15 + ['{"a": 2}'] * 15,
        "label": ["a", "b", "c"] * 10,
    }
    path = write_parquet(tmp_path / "x.parquet", image=[png(i) for i in range(30)], **columns)
    for name in ("id", "caption", "file", "meta"):
        with pytest.raises(DataError, match=r"hardly classes(.|\n)*label_column out(.|\n)*trust_classes true"):
            opened(path, label_column=name)
        assert opened(path, label_column=name, trust_classes=True).labels is not None
    assert opened(path, label_column="label", limit=2).labels is not None


def test_a_few_images_of_many_classes_are_no_doubt_by_their_limit(tmp_path: Path) -> None:
    labels = [f"class {i % 40}" for i in range(200)]
    path = write_parquet(tmp_path / "x.parquet", image=[png(0)] * 200, label=labels)
    assert len(opened(path, label_column="label", limit=25).ids) == 25


def test_white_space_around_a_class_is_refused() -> None:
    with pytest.raises(DataError, match="white space around a class name"):
        names(["cat", "cat "])
