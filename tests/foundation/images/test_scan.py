"""A look at a source before its first use."""

import numpy as np
import pytest
from PIL import Image
from support.picture_runs import picture

from foundation.images import scan as scan_module
from foundation.images.failures import BadImage
from foundation.images.scan import content_of, sample_of, scan


class Many:
    """Pictures that note which of them are read."""

    labels, class_names = None, ()

    def __init__(self, n: int) -> None:
        self.ids, self.read_ids = [str(i) for i in range(n)], set[int]()

    def read(self, index: int) -> Image.Image:
        self.read_ids.add(index)
        if index == 5:
            raise BadImage("unreadable", "is damaged")
        return picture(index % 100)


def test_a_small_set_is_read_and_a_large_one_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Many(300)
    found = scan(small)
    assert found.contents is not None and small.read_ids == {*range(300)}
    assert found.contents[5] == 0 and found.shapes.sizes == {(8, 8): 299} and found.shapes.modes == {"RGB": 299}
    assert len(set(found.contents.tolist())) == 101, "100 pictures, and the damaged one"
    monkeypatch.setattr(scan_module, "SMALL_IMAGES", 299)
    large = Many(300)
    assert scan(large).contents is None and len(large.read_ids) == 64
    monkeypatch.undo()
    monkeypatch.setattr(scan_module, "_SMALL_BYTES", 300 * 8 * 8 * 3 - 1)
    assert scan(Many(300)).contents is None


def test_what_is_asked_for_counts_more_than_the_size() -> None:
    few = Many(200)
    assert scan(few, "files").contents is None and len(few.read_ids) == 64
    assert scan(Many(200), "content").contents is not None


def test_a_sample_is_spread_evenly() -> None:
    assert sample_of(3) == [0, 1, 2] and sample_of(0) == []
    assert len(sample_of(10_000)) == 64 and {0, 9_999} <= {*sample_of(10_000)}


def test_the_hash_is_that_of_the_pixels_not_of_the_file() -> None:
    image = picture(3)
    assert content_of(image) == content_of(image.copy()) != content_of(image.convert("L"))
    other = np.asarray(image).copy()
    other[0, 0, 0] ^= 1
    assert content_of(Image.fromarray(other)) != content_of(image)
    assert content_of(Image.new("L", (2, 8))) != content_of(Image.new("L", (8, 2)))
