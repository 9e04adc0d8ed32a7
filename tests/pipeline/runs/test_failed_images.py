"""The list of a run's unusable images."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.picture_runs import save_pictures

from foundation.errors import DataError
from foundation.images.config import Preprocess
from foundation.images.failures import Failure
from foundation.images.folder import FolderSource
from foundation.images.image_set import ImageSet
from pipeline.runs.failed_images import FailedImages, failed_images
from pipeline.runs.folder import RunFolder

ALONE = SimpleNamespace(num_processes=1, is_main_process=True)


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, ImageSet]:
    save_pictures(tmp_path / "images", range(20))
    (tmp_path / "images" / "004.png").write_bytes(b"no image")
    (tmp_path / "run").mkdir()
    return {
        name: ImageSet(FolderSource(str(tmp_path / "images")), Preprocess(height=8, width=8), max_failed_share=0.06)
        for name in ("train", "validation")
    }


def test_each_image_is_listed_once_and_said_once(
    tmp_path: Path, sets: dict[str, ImageSet], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    failed = FailedImages(folder, sets, ALONE)
    failed.publish()
    assert failed_images(folder) == {"train": {}, "validation": {}} and folder.failures.is_file()
    for _ in range(2):
        sets["train"].batch(np.arange(20), np.zeros(20, int))
        failed.publish()
    found = failed_images(folder)
    assert [*found["train"]] == ["004.png"] and not found["validation"]
    assert "not an image" in found["train"]["004.png"].reason
    assert capsys.readouterr().out.count("unusable: 004.png") == 1
    assert failed.account(7) == (
        "train 20 = 19 used, 13 of them not yet read + 1 failed; validation 20 = 20 used + 0 failed"
    )
    assert failed.account(20).startswith("train 20 = 19 used + 1 failed")


def test_too_many_are_written_down_before_the_run_stops(tmp_path: Path, sets: dict[str, ImageSet]) -> None:
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "images" / "005.png").unlink()
    failed = FailedImages(folder, sets, ALONE)
    with pytest.raises(DataError, match="2 of 20 failed"):
        sets["train"].batch(np.arange(20), np.zeros(20, int))
    with pytest.raises(DataError, match="2 of 20 failed"):
        failed.publish()
    assert [*failed_images(folder)["train"]] == ["004.png", "005.png"]


def test_lines_that_a_crash_cut_are_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    line = '{"split": "train", "image_id": "a", "reason": "x", "code": "unreadable"}\n'
    folder.failures.write_text(line + line[:30] + "\n[]\n" + '{"split": "other"}\n', encoding="utf-8")
    assert failed_images(folder) == {"train": {"a": Failure("a", "x")}, "validation": {}}
