"""Images that are decoded when they are used: replaced, listed, counted."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_sets import met, usable
from support.picture_runs import picture, save_pictures

from foundation.errors import DataError
from foundation.images.config import Preprocess
from foundation.images.failures import BadImage, Failure
from foundation.images.folder import FolderSource
from foundation.images.image_set import ImageSet, first_readable

PREPROCESS = Preprocess(height=8, width=8)
ALL = np.arange(12)
ZEROS = np.zeros(12, int)


class Counted:
    """Images that count how often each is read; some cannot be."""

    labels, class_names = None, ()

    def __init__(self, bad: dict[int, Exception]) -> None:
        self.ids, self.bad, self.reads = [f"{i:03d}" for i in range(12)], bad, np.zeros(12, int)
        self._counting = threading.Lock()

    def read(self, index: int) -> Image.Image:
        with self._counting:
            self.reads[index] += 1
        if index in self.bad:
            raise self.bad[index]
        return picture(index)


def of_number(pixels: np.ndarray) -> list[int]:
    numbers = {np.asarray(picture(i)).tobytes(): i for i in range(12)}
    return [numbers[each.tobytes()] for each in pixels]


def drawn(images: ImageSet, epoch: int = 0) -> list[int]:
    return of_number(images.batch(ALL, ZEROS + epoch)["images"].numpy())


BAD = {3: BadImage("unreadable", "is damaged"), 7: ValueError("odd")}


def test_nothing_is_read_before_it_is_used() -> None:
    source = Counted({})
    images = ImageSet(source, PREPROCESS)
    assert len(images) == images.n_usable == 12 and source.reads.sum() == 0
    images.pixels(np.array([2, 5]))
    assert source.reads.tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_an_unusable_image_is_replaced_by_one_that_depends_on_the_seed_and_the_image(cache_mib: int) -> None:
    one, other = (ImageSet(Counted(BAD), PREPROCESS, cache_mib=cache_mib, seed=5) for _ in range(2))
    whole = drawn(one)
    assert [i for i in range(12) if whole[i] != i] == [3, 7] and not {3, 7} & {*whole}
    assert drawn(one) == whole and drawn(one, 1) == whole
    parts = [other.batch(ALL[i : i + 1], ZEROS[:1])["images"][0].numpy() for i in reversed(range(12))]
    assert of_number(np.stack(parts)) == whole[::-1]
    seeds = {tuple(drawn(ImageSet(Counted(BAD), PREPROCESS, seed=seed))) for seed in range(8)}
    assert len(seeds) > 4


def test_each_unusable_image_is_read_once_and_listed_once_with_its_reason() -> None:
    source = Counted(BAD)
    images = ImageSet(source, PREPROCESS, cache_mib=0)
    for epoch in range(3):
        drawn(images, epoch)
    assert [(each.image_id, each.code, each.reason) for each in images.failures] == [
        ("003", "unreadable", "is damaged"),
        ("007", "unreadable", "ValueError: odd"),
    ]
    assert images.n_usable + len(images.failures) == len(images) == 12
    assert source.reads[[3, 7]].tolist() == [1, 1]
    assert [each.image_id for each in images.take_failures()] in (["003", "007"], ["007", "003"])
    assert images.take_failures() == []


def test_what_the_storage_did_not_deliver_is_asked_for_again() -> None:
    source = Counted({3: BadImage("unavailable", "the storage does not answer")})
    images = ImageSet(source, PREPROCESS, cache_mib=0)
    drawn(images)
    drawn(images)
    assert source.reads[3] == 2 and [each.image_id for each in images.failures] == ["003"]
    source.bad.clear()
    assert drawn(images)[3] == 3


def test_failures_of_another_process_are_taken_over() -> None:
    source = Counted({})
    images = ImageSet(source, PREPROCESS, known_failures={"001": Failure("001", "was bad")})
    images.add_failures([Failure("002", "is bad"), Failure("001", "again")])
    assert usable(images) == [f"{i:03d}" for i in range(12) if i not in (1, 2)]
    assert source.reads[[1, 2]].sum() == 0 and images.take_failures() == []
    assert [each.reason for each in images.failures] == ["was bad", "is bad"]


def test_too_many_stop_the_reading_and_are_named() -> None:
    images = ImageSet(Counted(BAD), PREPROCESS, max_failed_share=0.1)
    with pytest.raises(DataError, match=r"2 of 12 failed(.|\n)*003: is damaged(.|\n)*007(.|\n)*at most a share of 0.1"):
        drawn(images)
    everything = ImageSet(Counted({i: BadImage("vanished", "gone") for i in range(12)}), PREPROCESS)
    with pytest.raises(DataError, match="no image can be read"):
        drawn(everything)
    with pytest.raises(DataError, match="no image can be read"):
        first_readable(everything, 4)


def test_what_is_asked_for_by_number_is_there_or_an_error_names_it() -> None:
    images = ImageSet(Counted(BAD), PREPROCESS)
    pixels, kept = images.readable(np.array([2, 3, 4]))
    assert kept.tolist() == [True, False, True] and of_number(pixels) == [2, 4]
    with pytest.raises(DataError, match="003: cannot be read: is damaged"):
        images.pixels(np.array([2, 3]))
    assert of_number(first_readable(images, 5)) == [0, 1, 2, 4, 5]


def test_files_that_change_while_images_are_used_are_failures(tmp_path: Path) -> None:
    save_pictures(tmp_path, range(12))
    images = ImageSet(FolderSource(str(tmp_path)), PREPROCESS, cache_mib=0)
    drawn(images)
    (tmp_path / "001.png").unlink()
    (tmp_path / "002.png").write_bytes((tmp_path / "002.png").read_bytes()[:60])
    assert [each.code for each in met(images).failures] == ["vanished", "unreadable"]


def test_failures_of_images_that_are_not_in_the_set_do_not_count() -> None:
    copies = {f"copy{i}": Failure(f"copy{i}", "has the pixels of another", "duplicate") for i in range(9)}
    images = ImageSet(Counted({3: BAD[3]}), PREPROCESS, max_failed_share=0.1, known_failures=copies)
    assert images.n_usable == 12 and not images.failures
    assert [each.image_id for each in met(images).failures] == ["003"]
