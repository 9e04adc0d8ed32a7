"""Trackers with the real packages: each logged number at its step, also over a resume; failures end no training."""

import importlib.util
import json
import multiprocessing
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from PIL import Image

from foundation.errors import ConfigError
from foundation.training import trackers
from foundation.training.log import MetricsLog, read_metrics
from foundation.training.trackers import RunTracker, require_tracker

CONFIG = {"seed": 3, "prior": {"training": {"learning_rate": 3e-4, "betas": [0.9, 0.95], "start_from": None}}}


def needs(*packages: str) -> pytest.MarkDecorator:
    absent = [each for each in packages if importlib.util.find_spec(each) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} is not installed")


def log_some(folder: Path, name: Any, first: int, last: int) -> None:
    """The log of steps ``first`` to ``last`` - 1, of which one in three is an evaluation."""
    Accelerator(cpu=True)  # which every training has
    tracker = RunTracker(name, folder / "tracking", "digits", "prior", CONFIG)
    log = MetricsLog(folder / "metrics.jsonl", "prior", tracker=tracker)
    log.forget_from(first)
    for step in range(first, last):
        if step % 3 == 0:
            log.write("held_out", step, {"score": 10.0 + step})
            log.picture(step, Image.new("L", (4, 4), step))
        log.write("train", step, {"loss": float(step), "norm": float("nan")})
    log.close()


def in_a_process(act: Callable[..., None], *arguments: Any, **variables: str) -> None:
    """Call a function in a fork, so that a tracker's services and settings end with it."""

    def child() -> None:
        os.environ.update(variables)
        act(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def resumed(folder: Path, name: str) -> None:
    """Steps 0 to 6, of which the last two are lost and done again, and on to 9."""
    log_some(folder, name, 0, 7)
    log_some(folder, name, 5, 9)
    assert not read_metrics(folder / "metrics.jsonl", kind="warning")


@needs("tensorboard")
def test_tensorboard_has_each_step_once_with_pictures_and_the_recipe(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resumed(tmp_path, "tensorboard")
    folder = tmp_path / "tracking" / "tensorboard" / "prior"
    found = EventAccumulator(str(folder))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [(i, float(i)) for i in range(9)]
    assert [(each.step, each.value) for each in found.Scalars("held_out/score")] == [(0, 10), (3, 13), (6, 16)]
    assert [each.step for each in found.Images("held_out/preview")] == [0, 3, 6]
    (recipe,) = folder.glob("*/hparams.yml")
    assert "prior.training.learning_rate: 0.0003" in recipe.read_text(encoding="utf-8")


@needs("trackio")
def test_trackio_has_each_step_once_with_pictures_and_the_recipe(tmp_path: Path) -> None:
    for first, last in ((0, 7), (5, 9)):
        place = str(tmp_path / "trackio")
        in_a_process(log_some, tmp_path, "trackio", first, last, TRACKIO_DIR=place, HF_HUB_OFFLINE="1")
    with sqlite3.connect(tmp_path / "trackio" / "tessera.db") as database:
        found = [(step, json.loads(each)) for step, each in database.execute("select step, metrics from metrics")]
        (config,) = [json.loads(each) for (each,) in database.execute("select config from configs")]
    losses = sorted((step, row["train/loss"]) for step, row in found if "train/loss" in row)
    assert losses == [(i, float(i)) for i in range(9)]
    assert sorted(step for step, row in found if "held_out/preview" in row) == [0, 3, 6]
    assert config["prior.training.learning_rate"] == 3e-4
    assert not read_metrics(tmp_path / "metrics.jsonl", kind="warning")


@needs("wandb")
def test_wandb_offline_has_each_step_once_with_pictures_in_one_run(tmp_path: Path) -> None:
    for first, last in ((0, 7), (5, 9)):
        in_a_process(log_some, tmp_path, "wandb", first, last, WANDB_MODE="offline", WANDB_SILENT="true")
    files = sorted((tmp_path / "tracking" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({each.name for each in files}) == 1, "two parts of one run, by its id"
    history = [row for each in files for row in _history(each)]
    steps = [(row["_step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert steps == [(i, i) for i in range(9)]
    assert [row["held_out/score"] for row in history if "held_out/score" in row] == [10, 13, 16]
    shown = [row["_step"] for row in history if any(name.startswith("held_out/preview") for name in row)]
    assert shown == [0, 3, 6]
    assert not read_metrics(tmp_path / "metrics.jsonl", kind="warning")


def _history(path: Path) -> list[dict[str, Any]]:
    """The rows of an offline file: a LevelDB log after 7 bytes, of blocks of 32 KiB, records of protobuf."""
    from wandb.proto import wandb_internal_pb2

    content, at, rows, data = path.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of a block
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # whole, or the last part
            continue
        record, data = wandb_internal_pb2.Record.FromString(data), b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in items})
    return rows


@needs("tensorboard")
def test_what_was_logged_before_there_was_a_tracker_is_shown_too(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = MetricsLog(tmp_path / "metrics.jsonl", "prior")
    for step in range(6):
        plain.write("train", step, {"loss": float(step), "norm": float("inf")})
    log_some(tmp_path, "tensorboard", 4, 6)
    found = EventAccumulator(str(tmp_path / "tracking" / "tensorboard" / "prior"))
    found.Reload()
    assert [each.step for each in found.Scalars("train/loss")] == list(range(6))
    assert "train/norm" not in found.Tags()["scalars"]


class Failing:
    """A tracker whose network goes away at step 2."""

    n_calls = 0

    def resume(self, step: int, rows: Any) -> None:
        self.n_calls += 1

    def log(self, values: dict[str, float], step: int) -> None:
        self.n_calls += 1
        if step == 2:
            raise ConnectionError("no answer from https://here/log?write_token=abc123 for key hunter2hunter2")

    def picture(self, name: str, picture: Any, step: int) -> None:
        self.n_calls += 1

    def close(self) -> None:
        self.n_calls += 1


def test_a_tracker_that_fails_is_named_once_without_secrets_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    tracker = Failing()
    log = MetricsLog(tmp_path / "metrics.jsonl", "prior", tracker=tracker)
    log.forget_from(0)
    for step in range(5):
        log.write("train", step, {"loss": 1.0})
    log.close()
    assert tracker.n_calls == 1 + 3, "nothing after the failure"
    assert len(read_metrics(log.path, kind="train")) == 5
    (row,) = read_metrics(log.path, kind="warning")
    assert "ConnectionError: no answer from https://here/log?..." in row["text"]
    said = capsys.readouterr().err
    assert said.count("the tracker fails") == 1
    assert not any(secret in text for secret in ("abc123", "hunter2") for text in (said, row["text"]))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_refused_with_the_line_that_installs_it(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r'pip install "tessera-images\[track\]"'):
        require_tracker(name)


@needs("wandb")
def test_wandb_without_a_login_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="WANDB_MODE=offline"):
        require_tracker("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_tracker("wandb")
