"""edit on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foundation.images.image_set import open_image_sets
from pipeline.cli import main
from pipeline.runs.folder import RunFolder


@pytest.fixture(scope="module")
def digits(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real digits as files."""
    folder = tmp_path_factory.mktemp("images")
    _, held_out = open_image_sets(RunFolder(finished_run).load_recipe().data)
    for i, pixels in enumerate(held_out.pixels(np.arange(2))):
        Image.fromarray(pixels[..., 0]).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "n_given"),
    [
        (["complete", "--rows", "0.5", "--guess-class"], 2),
        (["complete", "--rows", "3"], 2),
        (["inpaint", "--mask", "MASK", "--blend", "1", "--best-of", "2"], 2),
        (["vary", "--share", "0.3", "--class-label", "3"], 1),
        (["change-class", "--class-label", "8"], 1),
    ],
)
def test_edits_write_a_row_for_each_image_and_every_result(
    finished_run: Path, digits: Path, tmp_path: Path, arguments: list[str], n_given: int
) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    name, *options = [str(tmp_path / "mask.png") if each == "MASK" else each for each in arguments]
    files = [str(digits / "0.png"), str(digits / "1.png")]
    line = ["edit", name, str(finished_run), *files, "--num-images", "3", "--seed", "2", *options]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == sorted(f"000{i}-{i}-{end}.png" for i in range(2) for end in ("0", "1", "2", "all"))
    row = Image.open(tmp_path / "out" / "0000-0-all.png")
    assert row.size == ((n_given + 3) * 66 - 2, 64)
    assert main([*line, "--out", str(tmp_path / "again")]) == 0
    one, other = (np.asarray(Image.open(tmp_path / each / "0001-1-2.png")) for each in ("out", "again"))
    assert np.array_equal(one, other)
