"""Subfolders are looked at before they are taken as classes."""

import pytest

from foundation.errors import DataError
from foundation.images.layout import classes_of


def ids(*folders: str) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(2)]


def seen(*folders: str, trusted: bool = False) -> tuple[list[str] | None, list[str]]:
    return classes_of(ids(*folders), "pictures", "data.source.path", trusted=trusted)


@pytest.mark.parametrize(
    "folders, what, ways",
    [
        (["train", "test"], "splits", "--data.source.path pictures/train --data.source.validation_path pictures/test"),
        (["train/cat", "val/cat"], "splits", "--data.source.validation_path pictures/val"),
        (["train2017", "val2017", "labels"], "splits", "--data.source.path pictures/train2017"),
        (["Training_set", "Test_set"], "splits", "--data.source.path pictures/Training_set"),
        (["images"], "a single subfolder", "--data.source.path pictures/images)"),
        (["data/train/a", "data/train/b", "data/val/a"], "a single subfolder", "path pictures/data/train "),
        (["100APPLE", "101APPLE", "102CANON"], "folders of a camera", "--data.source.subfolders ignored"),
        (["2021-05-01", "2022-01"], "dates", "--data.source.subfolders ignored"),
        (["2019", "2020"], "dates", "--data.source.trust_classes true"),
        (["00000", "00001"], "numbered shards", "--data.source.subfolders ignored"),
        (["part-0", "part-1"], "numbered shards", "--data.source.subfolders ignored"),
    ],
)
def test_what_is_no_class_is_refused_with_the_ways_out(folders: list[str], what: str, ways: str) -> None:
    with pytest.raises(DataError) as refused:
        seen(*folders)
    text = str(refused.value)
    assert what in text and ways in text and "trust_classes true" in text and "subfolders ignored" in text
    classes, _ = seen(*folders, trusted=True)
    assert classes == [name.split("/")[0] for name in ids(*folders)]


@pytest.mark.parametrize(
    "folders",
    [
        ["cat", "dog"],
        ["0", "1"],
        ["001", "002"],
        ["n01440764", "n01443537"],
        ["cat", "test"],
        ["1999 Ford", "2001 Opel"],
    ],
)
def test_classes_are_taken(folders: list[str]) -> None:
    assert seen(*folders)[0] == [name.split("/")[0] for name in ids(*folders)]


def test_what_may_surprise_is_noted() -> None:
    assert seen("cat/2023", "Cat/2024", "test")[1] == [
        "a class is named like a split: test",
        "subfolders of classes are not distinguished: 2023, 2024",
        "classes that differ in case or spaces only: Cat, cat",
    ]


def test_loose_images_have_no_classes_and_may_not_lie_beside_some() -> None:
    assert classes_of(["a.png", "b.png"], "pictures", "data.source.path", trusted=False) == (None, [])
    with pytest.raises(DataError, match=r"1 loose, e\.g\. a\.png(.|\n)*subfolders ignored"):
        classes_of(["a.png", *ids("cat")], "pictures", "data.source.path", trusted=True)
