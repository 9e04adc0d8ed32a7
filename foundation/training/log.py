"""Metrics as JSON lines: one file per run, one object per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.storage import durable


class MetricsLog:
    """Appends to and reads ``metrics.jsonl``.

    Each line has ``stage`` (``tokenizer`` or ``prior``), ``kind`` (``train``, ``held_out`` for the validation set, or
    ``warning``), ``step`` and numbers, or the warning's ``text``. Numbers that are not finite are written as null.
    """

    def __init__(self, path: Path, stage: str, *, enabled: bool = True) -> None:
        self.path, self.stage, self.enabled = path, stage, enabled

    def write(self, kind: str, step: int, metrics: dict[str, float]) -> None:
        """Append one line."""
        self._append(kind, step, {name: value if math.isfinite(value) else None for name, value in metrics.items()})

    def warn(self, step: int, text: str) -> None:
        """Append a line of kind ``warning`` with its ``text``."""
        self._append("warning", step, {"text": text})

    def _append(self, kind: str, step: int, values: Mapping[str, object]) -> None:
        if self.enabled:
            durable.append_line(self.path, json.dumps({"stage": self.stage, "kind": kind, "step": step, **values}))

    def forget_from(self, step: int) -> None:
        """Drop this stage's lines of step ``step`` and later: a resumed run writes them again."""
        if not self.enabled or not self.path.exists():
            return
        kept = [row for row in read_metrics(self.path) if row["stage"] != self.stage or row["step"] < step]
        durable.replace_file(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())


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
