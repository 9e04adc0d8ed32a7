"""A run's list of images: written, read, compared."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.picture_runs import picture, save_pictures

from foundation.config import digest
from foundation.errors import DataError
from foundation.images.failures import BadImage, Failure
from foundation.images.folder import FolderSource
from foundation.images.listing import Changes, ListedImages, ListedSource, Listing, changes
from foundation.images.scan import scan

FAILED = Failure("a/bad é.png", "damaged; no image", "unreadable")


def listed(
    ids: list[str], labels: list[int], contents: list[int], failures: dict[str, Failure] | None = None
) -> ListedImages:
    sizes, times = np.arange(len(ids)), np.arange(len(ids)) + 2**62
    return ListedImages(ids, np.array(labels), sizes, times, np.array(contents, np.uint64), failures or {})


def listing() -> Listing:
    train = listed(["a/1.png", "a/bad é.png", "b/2.png"], [0, 0, 1], [5, 0, 2**64 - 1], {FAILED.image_id: FAILED})
    copy = Failure("b/copy.png", "has the pixels of a/1.png", "duplicate")
    validation = listed(["b/3.png", "b/copy.png"], [1, 1], [7, 0], {"b/copy.png": copy})
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
        for name in ("labels", "sizes", "times", "contents"):
            assert np.array_equal(getattr(other, name), getattr(each, name)), name
        assert other.identity == each.identity


def test_images_without_classes_have_none(tmp_path: Path) -> None:
    plain = ListedImages.named(["1", "2"], None)
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
            "train": ListedImages.named(["a/000.png", "b/001.png", "b/gone.png"], np.array([1, 1, 1])),
            "validation": ListedImages.named(["b/002.png"], np.array([1])),
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
    there = ListedImages.named(["002.png", "gone.png", "000.png", "001.png"], np.arange(4))
    source = ListedSource(replace(there, failures=copy), ("a", "b", "c", "d"), sources)
    assert np.array_equal(np.asarray(source.read(0)), np.asarray(sources[1].read(0)))
    with pytest.raises(BadImage, match="belongs to the run and is no longer there"):
        source.read(1)
    assert source.present().ids == ["002.png", "000.png", "001.png"]
    assert source.present().labels.tolist() == [0, 2, 3]
    assert source.without_copies().ids == ["002.png", "gone.png", "000.png"]


def test_an_image_of_another_size_or_with_other_pixels_is_another_image(tmp_path: Path) -> None:
    save_pictures(tmp_path, range(3))
    source = FolderSource(str(tmp_path))
    contents = scan(source, "content").contents
    assert contents is not None and len(set(contents.tolist())) == 3
    of_files, of_pixels = (ListedSource(ListedImages.of(source, each), (), [source]) for each in (None, contents))
    assert of_files.listed.identity != of_pixels.listed.identity
    picture(9).save(tmp_path / "001.png")
    (tmp_path / "002.png").write_bytes((tmp_path / "002.png").read_bytes() + b"x")
    with pytest.raises(BadImage, match="has other pixels than when the run began"):
        of_pixels.read(1)
    for listed_source in (of_files, of_pixels):
        listed_source.read(0)
        with pytest.raises(BadImage, match=r"has [\d,]+ bytes, and had [\d,]+ when it was listed"):
            listed_source.read(2)


def test_times_and_sizes_that_differ_are_said(tmp_path: Path) -> None:
    save_pictures(tmp_path, range(4))
    source = FolderSource(str(tmp_path))
    then = Listing({"train": ListedImages.of(source), "validation": ListedImages.named([], None)}, ())
    assert not changes(then, {"train": source, "validation": None})
    os.utime(tmp_path / "001.png", ns=(1, 1))
    (tmp_path / "002.png").write_bytes(b"shorter")
    found = changes(then, {"train": FolderSource(str(tmp_path)), "validation": None})
    assert (found.touched, found.resized) == (["001.png"], ["002.png"])
    assert "1 of its images has another size in bytes now, and is left out (002.png)" in found.sentence()


def test_a_list_of_an_earlier_version_keeps_its_identity_and_its_failures(tmp_path: Path) -> None:
    columns = {
        "image_id": ["a", "bad", "c", "d"],
        "split": ["train", "train", "train", "validation"],
        "label": pa.array([None] * 4, pa.int32()),
        "checksum": pa.array([5, 0, 6, 7], pa.uint64()),
        "failure": [None, "unreadable", None, None],
        "reason": [None, "empty", None, None],
    }
    about = {b"tessera": json.dumps({"format": 1, "class_names": [], "inventory": {}}).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(about), tmp_path / "images.parquet")
    train = Listing.load(tmp_path / "images.parquet").splits["train"]
    assert train.ids == ["a", "c"] and train.identity == digest([["a", "c"], [5, 6]])
    assert dict(train.failures) == {"bad": Failure("bad", "empty", "unreadable")}
