import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.images.class_names import class_numbers, in_order, require_same_classes


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
