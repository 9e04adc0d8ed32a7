"""Trackers of a training: TensorBoard, Weights & Biases, Trackio, by Accelerate's classes.

A stage is one run of the tracker, whose steps are optimizer steps. Its id is kept in the run folder, so that a resumed
training continues it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foundation.errors import ConfigError
from foundation.storage import durable
from foundation.training.config import TrackerName

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from PIL import Image

_PROJECT = "tessera"
_OFFLINE = ("offline", "disabled", "dryrun")


def require_tracker(name: TrackerName) -> None:
    """Refuse a tracker that cannot work here, before anything is trained.

    Raises:
        ConfigError: its package is not installed, or Weights & Biases has no login.
    """
    there = importlib.util.find_spec(name) is not None
    fix = 'pip install "tessera-images[track]", or leave --track out'
    ConfigError.unless(there, "needs a package that is not installed", field="--track", found=name, fix=fix)
    if name == "wandb" and os.environ.get("WANDB_MODE", "online") not in _OFFLINE:
        import wandb

        what, fix = "needs a login to Weights & Biases", "run wandb login, or set WANDB_MODE=offline"
        ConfigError.unless(wandb.login(prompt=False, verify=False), what, field="--track", found=name, fix=fix)


class RunTracker:
    """One stage in a tracker; its calls may raise whatever the tracker raises.

    Args:
        name: which tracker.
        folder: where ids, and TensorBoard's and Weights & Biases' files, are kept.
        run_name: name of the run folder.
        stage: ``tokenizer`` or ``prior``.
        config: the resolved recipe, nested plain values.
    """

    def __init__(self, name: TrackerName, folder: Path, run_name: str, stage: str, config: Mapping[str, Any]) -> None:
        self.name, self._folder, self._config = name, folder, config
        self._run_name, self._stage = run_name, stage
        self._seen: dict[str, int] = {}
        self._tracker: Any = None

    def resume(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin, or continue at ``step`` what was begun before; no step is shown twice.

        Args:
            step: of the checkpoint that training continues from.
            rows: this stage's logged metrics so far. What was logged before there was a tracker is shown now.
        """
        path = self._folder / f"{self.name}-{self._stage}.json"
        is_new = not path.is_file()
        run_id = secrets.token_hex(4) if is_new else json.loads(path.read_bytes())["id"]
        self._tracker = self._start(run_id, step)
        if is_new:
            self._tracker.store_init_configuration(_flat(self._config))
            durable.replace_file(path, json.dumps({"id": run_id}).encode())
            for row in rows:
                if row["step"] < step and row["kind"] != "warning":
                    self.log(_named(row), row["step"])
        elif self.name != "tensorboard":  # which drops the steps from ``step`` on
            self._seen = {row["kind"]: row["step"] for row in rows}

    def log(self, values: dict[str, float], step: int) -> None:
        """Show metrics of one kind, named ``kind/metric``."""
        if self._is_new(next(iter(values), ""), step):
            self._tracker.log(values, step=step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Show a picture, named as metrics are."""
        if not self._is_new(name, step):
            return
        if self.name == "trackio":
            import trackio

            self._tracker.log({name: trackio.Image(picture.convert("RGB"))}, step=step)
        elif self.name == "wandb":
            self._tracker.log_images({name: [picture.convert("RGB")]}, step=step)
        else:
            pixels_1YXC = np.asarray(picture.convert("RGB"))[None]
            self._tracker.log_images({name: pixels_1YXC}, step=step, dataformats="NHWC")

    def close(self) -> None:
        """Wait until everything is written."""
        if self._tracker is not None:
            self._tracker.finish()

    def _is_new(self, name: str, step: int) -> bool:
        """Whether this step of its kind was not shown before training was resumed."""
        return step > self._seen.get(name.split("/")[0], -1)

    def _start(self, run_id: str, step: int) -> GeneralTracker:
        from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._run_name}-{self._stage}-{run_id}"
        tracker: GeneralTracker
        if self.name == "tensorboard":
            tracker = TensorBoardTracker(self._stage, self._folder / "tensorboard", purge_step=step)
        elif self.name == "wandb":
            place = {"dir": str(self._folder), "id": run_id, "resume": "allow"}
            project = os.environ.get("WANDB_PROJECT", _PROJECT)
            tracker = WandBTracker(project, name=name, group=self._run_name, **place)
        else:
            quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
            config = _flat(self._config)  # Trackio stores what it is given at the start
            tracker = TrackioTracker(_PROJECT, name=name, group=self._run_name, resume="allow", config=config, **quiet)
        tracker.start()
        return tracker


def _named(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite metrics of a logged row, named as ``MetricsLog`` names them."""
    kept = {name: value for name, value in row.items() if name not in ("stage", "kind", "step") and value is not None}
    return {f"{row['kind']}/{name}": float(value) for name, value in kept.items()}


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested values by dotted name; what is no number or text as JSON."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{where}{name}.")
        else:
            plain = isinstance(value, (bool, int, float, str))
            flat[where + name] = value if plain else json.dumps(value)
    return flat
