"""Progress of an export, read from its folder."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from pipeline.encoding.plan import ExportPlan
from pipeline.encoding.status import ExportStatus, export_status


def test_files_and_images_are_counted_from_the_folder(clean: Path, tmp_path: Path) -> None:
    whole = export_status(clean)
    assert whole.finished and whole.files == whole.files_written == 10
    assert (whole.planned, whole.written, whole.failed) == (40, 40, 0)
    codes = tmp_path / "codes"
    shutil.copytree(clean, codes)
    shards = ExportPlan.from_json(codes / "plan.json").shards
    shards[0].path(codes).unlink()
    partial = export_status(codes)
    assert not partial.finished and partial.files_written == 9
    assert partial.written == 40 - shards[0].n_images
    assert partial.text().startswith("not finished: 36 of 40 images (90.0%), 9 of 10 files")


def test_the_rate_is_of_recent_files_without_the_first_one(clean: Path, tmp_path: Path) -> None:
    codes, now = tmp_path / "codes", time.time()
    shutil.copytree(clean, codes)
    shards = ExportPlan.from_json(codes / "plan.json").shards
    for i, planned in enumerate(shards):
        age = 20 - i if i >= 7 else 7200  # three files in the last seconds, the others two hours ago
        os.utime(planned.path(codes), (now - age, now - age))
    status = export_status(codes)
    assert status.images_per_second is not None
    assert abs(status.images_per_second - sum(each.n_images for each in shards[8:]) / 2) < 1e-3
    shards[9].path(codes).unlink()
    shards[8].path(codes).unlink()
    assert export_status(codes).images_per_second is None


def test_the_time_left_follows_from_the_rate() -> None:
    status = ExportStatus(
        planned=1000,
        written=390,
        failed=10,
        files=10,
        files_written=4,
        images_per_second=0.1,
        finished=False,
        holders=(),
        failures="10 unreadable",
    )
    assert status.seconds_left == 6000
    assert "failed   10 (10 unreadable)" in status.text() and "1 h 40 min left" in status.text()
