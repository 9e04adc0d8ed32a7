"""Metrics as JSON lines: one file per run, one object per line; and the same in a tracker, if there is one."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foundation.errors import one_line
from foundation.storage import durable

if TYPE_CHECKING:
    from PIL import Image

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")


class Tracker(Protocol):
    """A place outside the run folder's files where metrics and pictures of one stage are shown too."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Show metrics of a step, by name."""
        ...

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Show a picture of a step."""
        ...

    def resume(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The first call: training goes on from ``step``; ``rows`` are the stage's lines so far, later ones too."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


class MetricsLog:
    """Appends to and reads ``metrics.jsonl``.

    Each line has ``stage`` (``tokenizer`` or ``prior``), ``kind`` (``train``, ``held_out`` for the validation set, or
    ``warning``), ``step`` and numbers, or the warning's ``text``. Numbers that are not finite are written as null.

    Args:
        path: of the file.
        stage: whose lines are written.
        enabled: False writes and tracks nothing: of several processes, one does.
        tracker: gets the numbers of each line, named ``kind/name``, and the pictures.
    """

    def __init__(self, path: Path, stage: str, *, enabled: bool = True, tracker: Tracker | None = None) -> None:
        self.path, self.stage, self.enabled = path, stage, enabled
        self._tracker = tracker if enabled else None

    def write(self, kind: str, step: int, metrics: dict[str, float]) -> None:
        """Append one line."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._append(kind, step, {name: finite.get(name) for name in metrics})
        named = {f"{kind}/{name}": float(value) for name, value in finite.items()}
        self._track(lambda tracker: tracker.log(named, step), step)

    def warn(self, step: int, text: str) -> None:
        """Append a line of kind ``warning`` with its ``text``."""
        self._append("warning", step, {"text": text})

    def picture(self, step: int, picture: Image.Image) -> None:
        """Show a picture of a step in the tracker."""
        self._track(lambda tracker: tracker.picture("held_out/preview", picture, step), step)

    def close(self) -> None:
        """Close the tracker."""
        rows = read_metrics(self.path, self.stage) if self._tracker is not None else []
        self._track(lambda tracker: tracker.close(), rows[-1]["step"] if rows else 0)
        self._tracker = None

    def _track(self, action: Callable[[Tracker], None], step: int) -> None:
        """Act on the tracker; if it fails, say so once and go on without it."""
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:  # a tracker raises any class, also of its network
            self._tracker = None
            text = f"the tracker fails, and training goes on without it: {type(error).__name__}: {_harmless(error)}"
            self.warn(step, text)
            print(f"warning, {self.stage} step {step}: {text}", file=sys.stderr, flush=True)

    def _append(self, kind: str, step: int, values: Mapping[str, object]) -> None:
        if self.enabled:
            durable.append_line(self.path, json.dumps({"stage": self.stage, "kind": kind, "step": step, **values}))

    def forget_from(self, step: int) -> None:
        """Drop this stage's lines of step ``step`` and later: a resumed run writes them again."""
        if not self.enabled:
            return
        rows = read_metrics(self.path)
        if self.path.exists():
            kept = [row for row in rows if row["stage"] != self.stage or row["step"] < step]
            durable.replace_file(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        mine = [row for row in rows if row["stage"] == self.stage]
        self._track(lambda tracker: tracker.resume(step, mine), step)


def _harmless(error: Exception) -> str:
    """An error in one line without the queries of addresses and the values of variables that hold secrets."""
    text = re.sub(r"\?\S+", "?...", one_line(error))
    secrets = [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) > 3]
    for each in secrets:
        text = text.replace(each, "...")
    return text


def read_metrics(path: Path, stage: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file, optionally of one stage and kind, without damaged ones."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a crash in the middle of a line: the step is logged again on resume
            continue
        if not isinstance(row, dict) or not {"stage", "kind", "step"} <= row.keys():
            continue
        if stage in (None, row["stage"]) and kind in (None, row["kind"]):
            rows.append(row)
    return rows
