"""Progress of an export, read from its folder or place alone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from foundation.codes.shards import read_footer_at
from foundation.errors import DataError
from foundation.storage.places import LocalPlace, Place, as_place
from pipeline.encoding.accounts import by_code
from pipeline.encoding.export import LEASES, is_encoded
from pipeline.encoding.plan import PLAN, ExportPlan, PlannedShard
from pipeline.work_sharing import Holder, leases_of

_AT_ONCE = 16
_WINDOW_SECONDS = 1800.0  # window of the rate


@dataclass(frozen=True)
class ExportStatus:
    """Progress of an export.

    Attributes:
        planned, written, failed: images.
        files, files_written: parquet files.
        images_per_second: recent rate of all processes; None with fewer than two recent files.
        finished: whether the dataset is complete.
        holders: processes and their files.
        failures: failed images by code, as text.
    """

    planned: int
    written: int
    failed: int
    files: int
    files_written: int
    images_per_second: float | None
    finished: bool
    holders: tuple[Holder, ...]
    failures: str

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all files are written at the present rate."""
        if self.images_per_second is None:
            return None
        return (self.planned - self.written - self.failed) / self.images_per_second

    def text(self) -> str:
        """Lines for a terminal."""
        done = self.written + self.failed
        lines = [
            f"{'finished' if self.finished else 'not finished'}: {done:,} of {self.planned:,} images "
            f"({done / max(1, self.planned):.1%}), {self.files_written:,} of {self.files:,} files",
            f"  written  {self.written:,}",
            f"  failed   {self.failed:,}{f' ({self.failures})' if self.failed else ''}",
        ]
        if self.images_per_second is not None and self.seconds_left:
            lines.append(f"  lately   {self.images_per_second:,.1f} images/s, {_duration(self.seconds_left)} left")
        lines += [
            f"  {'working' if each.alive else 'given up'}  {each.work}: process {each.pid} on {each.host}, "
            f"seen {each.seconds:.0f} s ago"
            for each in self.holders
        ]
        return "\n".join(lines)


def export_status(folder: Path | Place) -> ExportStatus:
    """Read the progress of the export into ``folder``.

    Raises:
        DataError: no export has begun there, or its plan or a file is damaged.
        RemoteError: the store gives no access.
    """
    place = as_place(folder)
    if not place.exists(PLAN):
        raise DataError("no export has begun here", field=place.shown, fix="run tessera encode")
    plan, names = ExportPlan.of_place(place), set(place.names("data"))
    there = [planned for planned in plan.shards if planned.file in names]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        footers = list(pool.map(lambda planned: read_footer_at(place, planned.file), there))
    failures = [each for footer in footers for each in footer["failures"]]
    done = sum(planned.n_images for planned in there)
    leases = leases_of(place, LEASES)
    holders = leases.holders() if leases is not None and leases.folder.is_dir() else []
    return ExportStatus(
        planned=plan.n_images,
        written=done - len(failures),
        failed=len(failures),
        files=len(plan.shards),
        files_written=len(there),
        images_per_second=_rate(place, there),
        finished=is_encoded(place),
        holders=tuple(holders),
        failures=by_code(failures),
    )


def _rate(place: Place, there: list[PlannedShard]) -> float | None:
    """Images per second between the first and the last recent file; the first one's images do not count.

    None of a store, whose copies here have times of their own.
    """
    if not isinstance(place, LocalPlace):
        return None
    times = sorted((each.path(place.folder).stat().st_mtime, each.n_images) for each in there)
    recent = [each for each in times if time.time() - each[0] < _WINDOW_SECONDS]
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    return sum(n for _, n in recent[1:]) / (recent[-1][0] - recent[0][0])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"
