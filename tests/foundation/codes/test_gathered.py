"""Rows gathered for training: classes by name, images on one side, and what cannot be right is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.codes.gathered import Gathered, gather
from foundation.codes.sources import CodeRows
from foundation.codes.tables import CodeBlock
from foundation.errors import DataError

N = 30
CODES = np.random.default_rng(0).integers(0, 9, (N, 4))
IDS = [f"{i}.png" for i in range(N)]


def rows(split: str = "", names: tuple[str, ...] = (), **columns: Any) -> CodeRows:
    columns = {"codes": CODES, **columns}

    def read(start: int, stop: int) -> CodeBlock:
        return CodeBlock(**{name: None if each is None else each[start:stop] for name, each in columns.items()})

    return CodeRows(split, len(columns["codes"]), f"source {split}", read, (), names)


def gathered(folder: Path, *several: CodeRows, share: float = 0.2) -> Gathered:
    return gather(several, folder, share, "--codes")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(2, 40), st.booleans(), st.booleans())
def test_rows_of_one_image_and_equal_rows_stay_on_one_side(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, named: bool, labelled: bool
) -> None:
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(8).reshape(2, 4), rng.integers(0, 3, (n, 4))])
    ids = ["first", "second", *(f"{i % (1 + n // 3)}" for i in range(n))] if named else None
    labels = ["x"] * (n + 2) if labelled else None
    found = gathered(tmp_path_factory.mktemp("x"), rows(codes=codes, image_ids=ids, labels=labels))
    keys = ids or [row.tobytes() for row in codes]
    sides: dict[Any, set[bool]] = {}
    for key, is_held in zip(keys, found.held_N.tolist(), strict=True):
        sides.setdefault(key, set()).add(is_held)
    assert all(len(each) == 1 for each in sides.values()) and {True, False} == set(found.held_N.tolist())
    assert np.array_equal(found.codes_NT, codes)
    fewer = gathered(tmp_path_factory.mktemp("x"), rows(codes=codes[2:], image_ids=ids and ids[2:])) if n > 20 else None
    if fewer is not None and not labelled and found.held_N[2:].any():
        assert np.array_equal(fewer.held_N, found.held_N[2:]), "a side does not depend on other rows"


def test_numbers_take_the_names_of_the_source_and_classes_without_rows_are_left_out(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat", "dog")
    found = gathered(tmp_path, rows(names=names, labels=[3, 1] * 15))
    assert found.class_names == ("bee", "dog") and found.labels_N is not None
    assert found.labels_N.tolist() == [1, 0] * 15 and "2 of 4 classes have no training rows" in found.notes[0]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 2] * 15, ("2", "10")),
        ([10.0, 2.0] * 15, ("2", "10")),
        (["010", "011"] * 15, ("010", "011")),
        (["yes", "null"] * 15, ("null", "yes")),
        ([" a", "a"] * 15, (" a", "a")),
    ],
)
def test_classes_are_text_or_whole_numbers(labels: list, names: tuple[str, ...], tmp_path: Path) -> None:
    found = gathered(tmp_path, rows(labels=labels))
    assert found.class_names == names and found.labels_N is not None
    assert found.class_names[found.labels_N[0]] == str(labels[0]).removesuffix(".0")


@pytest.mark.parametrize(
    ("split", "note"), [("validation", None), ("test", "the split test is the held-out part"), ("val", "split val")]
)
def test_a_split_of_the_source_is_held_out(split: str, note: str | None, tmp_path: Path) -> None:
    train, held = rows("train", image_ids=IDS), rows(split, codes=CODES[:5] + 9, image_ids=[f"x{i}" for i in range(5)])
    found = gathered(tmp_path, train, held)
    assert found.held_N.tolist() == [False] * N + [True] * 5
    assert (not found.notes) if note is None else note in found.notes[0]


def test_a_split_that_is_not_used_is_named(tmp_path: Path) -> None:
    several = [rows(name, image_ids=[f"{name}{i}" for i in range(N)]) for name in ("train", "validation", "test")]
    found = gathered(tmp_path, *several)
    assert len(found.image_ids) == 2 * N and found.notes == ("not used: 30 rows of test",)


VIEWS = np.array([0, 1] * 15, np.uint8)


@pytest.mark.parametrize(
    ("several", "said"),
    [
        ([rows(codes=CODES - 1)], "is not a code(.|\n)*-1.."),
        ([rows(codes=CODES.astype(np.int64) + 2**31)], "is not a code"),
        ([rows(names=("a", "b"), labels=[0, 1, 2] * 10)], "outside of the classes(.|\n)*0..2"),
        ([rows(names=("a", "b"), labels=[-1, 1, 0] * 10)], "outside of the classes(.|\n)*filter"),
        ([rows(labels=[-1, 1] * 15)], "outside of the classes"),
        ([rows(labels=[0.5, 1] * 15)], "is no class"),
        ([rows(labels=[None, "a"] * 15)], "is no class"),
        ([rows(views=VIEWS)], "needs image_id"),
        ([rows("a"), rows("b")], "has no split train(.|\n)*a, b"),
        ([rows("test")], "has no split train"),
        ([rows("train"), rows("test", codes=CODES.reshape(N, 2, 2))], "another shape"),
        ([rows("train", labels=["a"] * N), rows("test", codes=CODES + 9)], "no labels, where another split has"),
        (
            [rows("train", labels=["a"] * N), rows("test", codes=CODES + 9, labels=["b"] * N)],
            "without training rows(.|\n)*b",
        ),
        ([rows("train"), rows("test", codes=CODES[:3])], "images of the training split(.|\n)*3 images"),
        (
            [rows("train", image_ids=IDS, views=VIEWS * 0), rows("test", image_ids=IDS, views=VIEWS * 0 + 1)],
            "images of the training split",
        ),
        ([rows(codes=CODES[:1])], "too few images"),
    ],
)
def test_what_cannot_be_right_is_refused(several: list[CodeRows], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        gathered(tmp_path, *several)


def test_images_of_one_name_with_other_codes_are_others(tmp_path: Path) -> None:
    found = gathered(tmp_path, rows("train", image_ids=IDS), rows("test", image_ids=IDS, codes=CODES + 9))
    assert found.held_N.sum() == N
