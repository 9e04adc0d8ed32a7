"""Progress of an export, read from its folder alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from foundation.codes.shards import read_footer
from foundation.errors import DataError
from pipeline.encoding.export import LEASES, PLAN, by_code, is_encoded
from pipeline.encoding.plan import ExportPlan
from pipeline.work_sharing import Holder, Leases

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


def export_status(folder: Path) -> ExportStatus:
    """Read the progress of the export into ``folder``.

    Raises:
        DataError: no export has begun there, or its plan or a file is damaged.
    """
    if not (folder / PLAN).exists():
        raise DataError("no export has begun here", field=str(folder), fix="run tessera encode")
    plan = ExportPlan.from_json(folder / PLAN)
    there = [(planned, planned.path(folder)) for planned in plan.shards if planned.path(folder).exists()]
    failures = [each for _, path in there for each in read_footer(path)["failures"]]
    done = sum(planned.n_images for planned, _ in there)
    times = sorted((path.stat().st_mtime, planned.n_images) for planned, path in there)
    holders = Leases(folder / LEASES).holders() if (folder / LEASES).is_dir() else []
    return ExportStatus(
        planned=plan.n_images,
        written=done - len(failures),
        failed=len(failures),
        files=len(plan.shards),
        files_written=len(there),
        images_per_second=_rate(times),
        finished=is_encoded(folder),
        holders=tuple(holders),
        failures=by_code(failures),
    )


def _rate(times: list[tuple[float, int]]) -> float | None:
    """Images per second between the first and the last recent file; the first one's images do not count."""
    recent = [each for each in times if time.time() - each[0] < _WINDOW_SECONDS]
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    return sum(n for _, n in recent[1:]) / (recent[-1][0] - recent[0][0])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"
