import pytest

from foundation.errors import DataError
from foundation.images.failures import FAILURE_CODES, BadImage, failure_of


@pytest.mark.parametrize("code", FAILURE_CODES)
def test_a_bad_image_keeps_its_code_and_its_reason_on_one_line(code: str) -> None:
    failure = failure_of("a.png", BadImage(code, "is bad", found="x", expected="y"))
    assert failure.image_id == "a.png" and failure.code == code
    assert "\n" not in failure.reason and failure.reason.startswith("is bad; found:")


def test_any_other_error_is_unreadable_and_names_its_class_unless_its_text_is_enough() -> None:
    assert failure_of("a", DataError("is odd")).reason == "is odd"
    assert failure_of("a", OSError("disk")).reason == "disk"
    assert failure_of("a", OSError()).reason == "OSError:"
    assert failure_of("a", KeyError("x")).reason == "KeyError: 'x'"
    assert {failure_of("a", error).code for error in (DataError("x"), OSError(), KeyError())} == {"unreadable"}
