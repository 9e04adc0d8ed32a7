"""Evaluations of a training: metrics, warnings, a picture, and the share of the time that they take."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.storage import durable
from foundation.training.config import FitConfig
from foundation.training.log import MetricsLog, read_metrics
from foundation.training.task import Task

if TYPE_CHECKING:
    from PIL import Image
    from tqdm import tqdm

Health = Callable[[list[dict[str, Any]]], list[str]]
"""warnings about a stage, given its metrics so far"""
SECONDS = "evaluate_seconds"


class Evaluations:
    """Evaluates a task, and logs what it finds.

    Args:
        task: the stage in training.
        config: how many images a picture has, and which evaluation is left out.
        log: where metrics and pictures go.
        health: called with the stage's metrics so far.
        previews: folder of the pictures; None draws none.
        evaluated: called after each evaluation, where metrics are logged.

    Attributes:
        sound_until: step of the last evaluation that was sound, in this process or one before; -1 without one.
        headline: for the progress bar, of the last evaluation in this process.
    """

    def __init__(
        self,
        task: Task,
        config: FitConfig,
        log: MetricsLog,
        health: Health,
        previews: Path | None = None,
        evaluated: Callable[[], None] = lambda: None,
    ) -> None:
        self._task, self._config, self._log, self._health = task, config, log, health
        self._evaluated = evaluated
        self._previews = previews if config.preview_images else None
        self._began, self._seconds = time.perf_counter(), 0.0
        self.sound_until = _sound_until(task, log)
        self.headline: dict[str, str] = {}

    def is_due(self, step: int) -> bool:
        """Whether an evaluation comes before this step."""
        return step % self._config.evaluate_every == 0 and (step > 0 or self._config.evaluate_at_start)

    def run(self, step: int, progress: tqdm[Any]) -> dict[str, float]:
        """Evaluate after ``step`` steps; every process calls it. Returns the metrics, without the time."""
        began = time.perf_counter()
        metrics = self._task.evaluate()
        sound = is_sound(self._task, metrics)
        if sound:
            self.sound_until = step
        picture = self._task.preview(self._config.preview_images) if sound and self._previews is not None else None
        if picture is not None and self._log.enabled:
            self._save(picture, step)
        seconds = time.perf_counter() - began
        self._seconds += seconds
        self._log.write("held_out", step, {**metrics, SECONDS: seconds})
        if picture is not None:
            self._log.picture(step, picture)
        self.headline = self._task.headline(metrics)
        progress.set_postfix(self.headline, refresh=False)
        for sentence in self._health(read_metrics(self._log.path, self._log.stage)) if self._log.enabled else ():
            self._log.warn(step, sentence)
            progress.write(f"warning, {self._log.stage} step {step}: {sentence}")
        if self._log.enabled:
            self._evaluated()
        return metrics

    def share_text(self) -> str:
        """What share of the time since the start evaluations have taken, in words."""
        total = time.perf_counter() - self._began
        return f"{self._log.stage}: evaluation took {self._seconds / total:.1%} of {total:,.0f} s of training"

    def _save(self, picture: Image.Image, step: int) -> None:
        assert self._previews is not None
        self._previews.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        picture.save(file, "PNG")
        durable.replace_file(self._previews / f"step-{step:08d}.png", file.getvalue())


def is_sound(task: Task, metrics: Mapping[str, float | None]) -> bool:
    """Whether all metrics are finite, and come from a model that works at all."""
    known = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
    return len(known) == len(metrics) and task.is_sound(known)


def _sound_until(task: Task, log: MetricsLog) -> int:
    """The last evaluation in the log that was sound, -1 without one."""
    kept = {"stage", "kind", "step"}
    evaluations = read_metrics(log.path, log.stage, "held_out")
    rows = [(row["step"], {k: v for k, v in row.items() if k not in kept}) for row in evaluations]
    return max((step for step, metrics in rows if is_sound(task, metrics)), default=-1)
