import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.images.class_names import class_numbers, in_order, require_plausible_classes, require_same_classes


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
