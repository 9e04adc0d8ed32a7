"""The report of a run while it trains, renewed after evaluations."""

from __future__ import annotations

import sys
import time

from foundation.errors import TesseraError, one_line
from pipeline.report.report import write_progress
from pipeline.runs.folder import RunFolder

_SHARE = 0.02
"""of the time since the last report that a new one may take"""


class LiveReport:
    """Writes the report of a run in training, where that takes little of the time; a failure is said once."""

    def __init__(self) -> None:
        self._written, self._took, self._fails = -float("inf"), 0.0, False

    def __call__(self, folder: RunFolder) -> None:
        """After an evaluation, on one process."""
        began = time.perf_counter()
        if self._fails or self._took > _SHARE * (began - self._written):
            return
        try:
            write_progress(folder)
        except (TesseraError, OSError) as error:
            self._fails = True
            print(f"warning: no report while it trains: {one_line(error)}", file=sys.stderr, flush=True)
        self._written = time.perf_counter()
        self._took = self._written - began
