"""A run's list of images: written, read, compared."""

from pathlib import Path

import numpy as np
import pytest
from support.picture_runs import save_pictures

from foundation.errors import DataError
from foundation.images.failures import BadImage, Failure
from foundation.images.folder import FolderSource
from foundation.images.listing import Changes, ListedImages, ListedSource, Listing, changes

FAILED = Failure("a/bad é.png", "damaged; no image", "unreadable")


def listing() -> Listing:
    train = ListedImages(
        ["a/1.png", "a/bad é.png", "b/2.png"], np.array([0, 0, 1]), np.array([5, 0, 2**64 - 1], np.uint64)
    )
    train = ListedImages(train.ids, train.labels, train.checksums, {FAILED.image_id: FAILED})
    copy = Failure("b/copy.png", "has the pixels of a/1.png", "duplicate")
    validation = ListedImages(
        ["b/3.png", "b/copy.png"], np.array([1, 1]), np.array([7, 0], np.uint64), {"b/copy.png": copy}
    )
    return Listing({"train": train, "validation": validation}, ("a", "b"), {"notes": ["x"]})


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    listing().save(tmp_path / "images.parquet")
    found = Listing.load(tmp_path / "images.parquet")
    assert found.class_names == ("a", "b") and found.inventory == {"notes": ["x"]}
    assert found.known() == {
        "a/1.png": False,
        "a/bad é.png": False,
        "b/2.png": False,
        "b/3.png": True,
        "b/copy.png": True,
    }
    for split, each in listing().splits.items():
        other = found.splits[split]
        assert (other.ids, dict(other.failures)) == (each.ids, dict(each.failures))
        assert np.array_equal(other.checksums, each.checksums) and np.array_equal(other.labels, each.labels)


def test_images_without_classes_have_none(tmp_path: Path) -> None:
    plain = ListedImages(["1", "2"], None, np.zeros(2, np.uint64))
    Listing({"train": plain, "validation": plain}, ()).save(tmp_path / "l.parquet")
    assert Listing.load(tmp_path / "l.parquet").splits["train"].labels is None


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}"])
def test_a_damaged_list_says_what_it_is_for(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "l.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"list of the run's images is damaged(.|\n)*restore this file"):
        Listing.load(tmp_path / "l.parquet")


def test_differences_are_one_sentence(tmp_path: Path) -> None:
    save_pictures(tmp_path / "a", range(1))
    save_pictures(tmp_path / "b", range(1, 4))
    source = FolderSource(str(tmp_path))
    then = Listing(
        {
            "train": ListedImages(
                ["a/000.png", "b/001.png", "b/gone.png"], np.array([1, 1, 1]), np.zeros(3, np.uint64)
            ),
            "validation": ListedImages(["b/002.png"], np.array([1]), np.zeros(1, np.uint64)),
        },
        ("a", "b"),
    )
    found = changes(then, {"train": source, "validation": None})
    assert found == Changes(["b/003.png"], ["b/gone.png"], ["a/000.png"]) and found
    assert found.sentence() == (
        "1 new image is not in this run (b/003.png); 1 of its images is gone (b/gone.png); "
        "1 of its images has another class now, and keeps the former one (a/000.png)"
    )
    many = Changes([f"{i}" for i in range(1200)], ["x", "y"], [])
    assert many.sentence() == "1,200 new images are not in this run (0, 1, 2, ...); 2 of its images are gone (x, y)"
    assert not Changes([], [], []) and Changes([], [], []).sentence() == ""


def test_a_listed_image_is_read_where_it_is(tmp_path: Path) -> None:
    save_pictures(tmp_path / "one", range(2))
    save_pictures(tmp_path / "two", range(2, 3))
    sources = [FolderSource(str(tmp_path / name)) for name in ("one", "two")]
    copy = {"001.png": Failure("001.png", "has the pixels of another", "duplicate")}
    listed = ListedImages(
        ["002.png", "gone.png", "000.png", "001.png"], np.arange(4), np.arange(4, dtype=np.uint64), copy
    )
    source = ListedSource(listed, ("a", "b", "c", "d"), sources)
    assert np.array_equal(np.asarray(source.read(0)), np.asarray(sources[1].read(0)))
    with pytest.raises(BadImage, match="belongs to the run and is no longer there"):
        source.read(1)
    assert source.present().ids == ["002.png", "000.png", "001.png"]
    assert source.present().labels.tolist() == source.present().checksums.tolist() == [0, 2, 3]
    assert source.without_copies().ids == ["002.png", "gone.png", "000.png"]
