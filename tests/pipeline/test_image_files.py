"""Image files that commands read: which are found, which are read, and what is said of the others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foundation.errors import DataError
from pipeline import ImageGenerator
from pipeline.image_files import file_name, files_below, read_pixels, readable


def test_unreadable_files_are_listed_and_the_others_are_read(untrained: ImageGenerator, tmp_path: Path) -> None:
    good, bad, small = (tmp_path / name for name in ("good.png", "bad.png", "small.png"))
    Image.fromarray(np.full((17, 20), 128, np.uint8)).save(good)
    Image.new("L", (1, 1)).save(small)
    bad.write_bytes(b"no image")
    failed: list[str] = []

    def read(path: Path) -> np.ndarray:
        return read_pixels(untrained.tokenizer, path, keep_size=True)

    found = dict(readable([good, bad, small], read, failed, desc="reading"))
    assert list(found) == [good] and found[good].shape == (1, 16, 20, 1)
    assert [line.split(":")[0] for line in failed] == [str(bad), str(small)]
    assert read_pixels(untrained.tokenizer, good, keep_size=False).shape == (1, 8, 12, 1)


def test_folders_stand_for_the_images_below_them(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    paths = [tmp_path / "a" / "b" / "1.png", tmp_path / "a" / "2.jpg"]
    for path in (*paths, tmp_path / "3.png"):
        Image.new("L", (2, 2)).save(path)
    assert sorted(files_below([str(tmp_path / "a")])) == sorted(paths)
    assert files_below([str(tmp_path / "3.png")]) == [tmp_path / "3.png"]
    with pytest.raises(DataError, match="no such file or folder"):
        files_below([str(tmp_path / "4.png")])


@pytest.mark.parametrize(
    ("text", "name"), [("tabby cat", "tabby_cat"), ("../a", "___a"), ("", "image"), ("x" * 99, "x" * 80)]
)
def test_any_text_gives_a_file_name(text: str, name: str) -> None:
    assert file_name(text) == name
