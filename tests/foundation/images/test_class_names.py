import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.images.class_names import (
    class_numbers,
    in_order,
    listed_classes,
    require_plausible_classes,
    require_same_classes,
    require_tidy,
)


@given(st.sets(st.text(max_size=5), min_size=1), st.randoms())
def test_the_order_of_classes_depends_on_the_set_alone_and_numbers_lead_back_to_names(names, random) -> None:
    images = [*names, *names]
    random.shuffle(images)
    numbers, classes = class_numbers(images, None, "field")
    assert classes == in_order(set(names)) and numbers.dtype == np.int64
    assert [classes[number] for number in numbers] == images


def test_numeric_names_are_sorted_as_numbers_and_others_as_text() -> None:
    assert in_order({"10", "9", "1"}) == ("1", "9", "10")
    assert in_order({"10", "9", "a"}) == ("10", "9", "a")


def test_classes_that_the_training_images_lack_are_refused() -> None:
    assert class_numbers(["b"], ("a", "b"), "field")[0].tolist() == [1]
    with pytest.raises(DataError, match="field: has classes that the training split lacks"):
        class_numbers(["c"], ("a", "b"), "field")
    require_same_classes(None, ("a",), "field")
    with pytest.raises(DataError, match="no classes"):
        require_same_classes(("a",), (), "field")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([str(i) for i in range(21)], "a name of its own for nearly each image"),
        ([*map(str, range(40)), *["a"] * 30], "a name of its own"),
        (['{"a": 1}', '["b"]'], "JSON texts"),
        (["x" * 101, "y" * 102], "long texts"),
        (["a.jpg", "b/c.PNG"], "names of files"),
        (["https://example.org/a"], "web addresses"),
    ],
)
def test_what_is_hardly_a_class_is_refused_with_both_ways_out(names: list[str], what: str) -> None:
    with pytest.raises(DataError, match=rf"data.source.label_column: holds {what}") as refused:
        require_plausible_classes(names, "data.source.label_column", trusted=False)
    assert "leave data.source.label_column out" in str(refused.value)
    assert "--data.source.trust_classes true" in str(refused.value)
    require_plausible_classes(names, "data.source.label_column", trusted=True)


@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(20)],
        [str(i // 2) for i in range(40)],
        ["{curly}", "[bracket]", "a"],
        ["v1.0", "St. Bernard", "file.txt"],
        [],
    ],
)
def test_what_may_be_a_class_is_believed(names: list[str]) -> None:
    require_plausible_classes(names, "data.source.label_column", trusted=False)


def listed(tmp_path: Path, text: str, ids: list[str], encoding: str = "utf-8") -> list[str]:
    (tmp_path / "l.csv").write_text(text, encoding=encoding, newline="")
    return listed_classes(tmp_path / "l.csv", ids, "labels")


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("path,label\na.png,x\nb/c.png,y\n", ["x", "y"]),
        ("file_name;class\r\na.png;x, small\r\nb/c.png;y\r\n", ["x, small", "y"]),
        ("label\timage\nx\ta.png\n'y'\tb/c.png", ["x", "'y'"]),
        ('filename,label,note\na.png,010,"one; two"\nb/c.png,1.0,', ["010", "1.0"]),
        ("path,file_name,label\na.png,other,x\nb/c.png,other,y\n", ["x", "y"]),
        ("path,label\n./a.png,x\nb\\c.png,y\n", ["x", "y"]),
    ],
)
def test_lists_as_people_write_them(tmp_path: Path, text: str, classes: list[str]) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        assert listed(tmp_path, text, ["a.png", "b/c.png"], encoding) == classes


def test_a_name_in_another_normal_form_is_found(tmp_path: Path) -> None:
    on_disk, written = (unicodedata.normalize(form, "é.png") for form in ("NFD", "NFC"))
    assert listed(tmp_path, f"path,label\n{written},x\n", [on_disk]) == ["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png, x\n", r"white space around a class name(.|\n)*' x', line 2"),
        ("path,label\na.png,x\t\n", r"white space around a class name"),
        ("path,label\na.png,x,y\n", r"more cells than columns(.|\n)*line 2"),
        ("path,label,label\na.png,x,y\n", r"two columns of one name"),
        ('path,label\na.png,"x\n', r"cannot be read"),
        ("name,kind\na.png,x\n", r"lacks a column(.|\n)*path, file_name"),
        ("path,label\na.png,x\n./a.png,y\n", r"two classes for an image"),
        ("path,label\nb\\a.png,x\nb/a.png,y\n", r"two classes for an image|twice"),
    ],
)
def test_a_list_that_would_lose_something_is_refused(tmp_path: Path, text: str, message: str) -> None:
    ids = ["b/a.png"] if "\\" in text else ["a.png"]
    with pytest.raises(DataError, match=f"labels: (.|\n)*{message}"):
        listed(tmp_path, text, ids)


def test_white_space_around_a_class_of_a_column_is_refused() -> None:
    require_tidy(["a", "b c"], "field", "column x")
    with pytest.raises(DataError, match=r"field: has white space(.|\n)*'a ', column x"):
        require_tidy(["b", "a "], "field", "column x")
