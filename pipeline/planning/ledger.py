"""Time of a run: what each part was expected to take, and what it took, over all starts of the run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from foundation.errors import CheckpointError
from foundation.storage import durable
from foundation.storage.serialization import json_text, read_json
from pipeline.planning.times import (
    DECODE,
    ENCODE,
    EVALUATE_PRIOR,
    EVALUATE_TOKENIZER,
    READ,
    REPORT,
    SAMPLE,
    START,
    TRAIN_PRIOR,
    TRAIN_TOKENIZER,
)
from pipeline.runs.duration import duration

PARTS = {
    START: (START,),
    READ: (READ,),
    "tokenizer": (DECODE, TRAIN_TOKENIZER, EVALUATE_TOKENIZER),
    ENCODE: (ENCODE,),
    "prior": (TRAIN_PRIOR, EVALUATE_PRIOR),
    SAMPLE: (SAMPLE,),
    REPORT: (REPORT,),
}
"""parts of a run, in order, each with its parts of ``run_times``"""


class Ledger:
    """Seconds of a run's parts, kept in its folder.

    Args:
        path: the file; None keeps nothing.

    Attributes:
        expected, taken: part => seconds; ``taken`` adds up over restarts.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        known = read_times(path) if path is not None else {}
        self.expected: dict[str, float] = dict(known.get("expected", {}))
        self.taken: dict[str, float] = dict(known.get("taken", {}))
        self._began: float | None = None

    def expect(self, times: Mapping[str, float]) -> None:
        """Add expectations, by names of ``run_times``; those that are there already stay."""
        for part, names in PARTS.items():
            if any(name in times for name in names):
                self.expected.setdefault(part, sum(times.get(name, 0.0) for name in names))
        self._save()

    def add(self, part: str, seconds: float) -> None:
        """Add to what a part took."""
        self.taken[part] = self.taken.get(part, 0.0) + seconds
        self._save()

    def move(self, part: str, other: str, seconds: float) -> None:
        """Count some of what a part took as another part's."""
        if seconds > 0:
            self.taken[part] = self.taken.get(part, 0.0) - seconds
            self.add(other, seconds)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part, also one that is interrupted."""
        began = self._began = time.perf_counter()
        try:
            yield
        finally:
            self._began = None
            self.add(name, time.perf_counter() - began)

    @property
    def spent(self) -> float:
        """Seconds of all parts together."""
        return sum(self.taken.values())

    @property
    def spent_now(self) -> float:
        """Seconds of all parts, of the one that runs up to now."""
        return self.spent + (0.0 if self._began is None else time.perf_counter() - self._began)

    def _save(self) -> None:
        if self._path is not None and self._path.parent.is_dir():
            durable.replace_file(self._path, json_text({"expected": self.expected, "taken": self.taken}))


def read_times(path: Path) -> dict[str, dict[str, float]]:
    """The content of a run's ``times.json``; empty without one, or where it is damaged: only times are lost."""
    try:
        return read_json(path, ("expected", "taken"), fix="move it away")
    except CheckpointError:
        return {}


def time_rows(times: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, str]]:
    """Rows of a table: part, expected, taken; and the total."""
    expected, taken = times.get("expected", {}), times.get("taken", {})
    parts = [part for part in PARTS if part in expected or part in taken]
    rows = [(part, _shown(expected, part), _shown(taken, part)) for part in parts]
    total = duration(sum(expected.values())) if expected else ""
    return [*rows, ("in all", total, duration(sum(taken.values())))]


def _shown(seconds: Mapping[str, float], part: str) -> str:
    return duration(seconds[part]) if part in seconds else ""
