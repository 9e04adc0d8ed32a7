"""Trials of equal time, one after the other: which there are, what is done, what a trial runs.

A file of trials is YAML: ``trials`` is a list of rows with ``name``, ``recipe``, ``budget`` and ``seeds``, and perhaps
``fields`` (dotted recipe fields), ``revision`` (a git revision of this repository that trains; default the files as
they are), ``codes_of`` (the name of a trial whose tokenizer and codes of the same seed the prior takes), ``prior:
llama`` (a LlamaForCausalLM instead of ours), ``pretrained`` (whether features trained on other images take part).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from foundation.config import from_dict, require
from foundation.errors import ConfigError, DataError, nearest
from foundation.storage import durable
from pipeline.runs.duration import Budget

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A recipe that is trained for a fixed time with several seeds."""

    name: str
    """of the row"""
    recipe: str = ""
    """a recipe's name or file; empty for a prior on the codes of another trial"""
    budget: str
    """time of both stages, such as 10m+10m"""
    seeds: tuple[int, ...] = (0,)
    """one run each"""
    fields: dict[str, Any] = field(default_factory=dict)
    """dotted fields of the recipe => their values"""
    revision: str | None = None
    """git revision that trains; null takes the files as they are"""
    codes_of: str | None = None
    """trial whose tokenizer and codes the prior takes"""
    prior: Literal["ours", "llama"] = "ours"
    """llama: transformers' LlamaForCausalLM with AdamW"""
    pretrained: bool = False
    """whether features that were trained on other images take part"""
    without: str | None = None
    """the method that this row switches off"""

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        borrows = self.codes_of is not None
        expected = "a trial whose codes it takes, or a recipe of its own: one of the two"
        require(borrows != bool(self.recipe), "codes_of", self.codes_of, expected)
        require(borrows or self.prior == "ours", "codes_of", None, "a trial before it, for a llama")
        require(not (borrows and self.revision), "revision", self.revision, "null where codes are another trial's")


def load_trials(path: Path) -> list[Trial]:
    """Read a file of trials.

    Raises:
        ConfigError: an unknown field, two trials of one name, or a ``codes_of`` that names none before it.
    """
    rows = [
        from_dict(Trial, row, f"{path.name}, trial {i}")
        for i, row in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")))
    ]
    known: list[str] = []
    for row in rows:
        if row.name in known:
            raise ConfigError("is there twice", field="name", found=row.name, fix="give each trial a name of its own")
        if row.codes_of is not None and row.codes_of not in known:
            fix = nearest(row.codes_of, known)
            raise ConfigError("names no trial before it", field=f"{row.name}.codes_of", found=row.codes_of, fix=fix)
        known.append(row.name)
    return rows


@dataclass(frozen=True)
class Place:
    """Folders of a queue.

    Attributes:
        root: of everything, an absolute path: commands run in the folder of their code.
        data: dotted fields of the images, for every trial.
    """

    root: Path
    data: Mapping[str, Any]

    def run(self, name: str, seed: int) -> Path:
        """The run folder of a trial."""
        return self.root / "runs" / f"{name}-{seed}"

    def result(self, name: str, seed: int) -> Path:
        """The file that says what a trial reached."""
        return self.root / "results" / f"{name}-{seed}.json"

    def log(self, name: str, seed: int) -> Path:
        """What a trial's command printed."""
        return self.root / "logs" / f"{name}-{seed}.log"

    def picture(self, name: str, seed: int) -> Path:
        """Samples and reconstructions of a trial."""
        return self.root / "pictures" / f"{name}-{seed}.png"


def open_rows(trials: list[Trial], place: Place) -> Iterator[tuple[Trial, int]]:
    """(trial, seed) that have no result yet: seed after seed, so that every trial has one soon."""
    most = max((len(each.seeds) for each in trials), default=0)
    for i in range(most):
        for trial in trials:
            if i < len(trial.seeds) and not place.result(trial.name, trial.seeds[i]).exists():
                yield trial, trial.seeds[i]


def train(trial: Trial, seed: int, place: Place) -> float:
    """Train a trial, or go on with it; returns the seconds of this start.

    Raises:
        DataError: the command failed; names its log.
    """
    folder = place.run(trial.name, seed)
    fields = {**place.data, **trial.fields, "seed": seed}
    line = [sys.executable, "-m", "pipeline.cli", "run", trial.recipe, "--budget", trial.budget, "-o", str(folder)]
    for name, value in fields.items():
        line += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    code = checkout(trial.revision, place)
    environment = {**os.environ, "PYTHONPATH": str(code)}
    log = place.log(trial.name, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with open(log, "ab") as file:
        done = subprocess.run(line, env=environment, cwd=code, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()[-1:]
        raise DataError("a trial failed", field=f"{trial.name}, seed {seed}", found=last, fix=f"read {log}")
    return time.perf_counter() - began


def checkout(revision: str | None, place: Place) -> Path:
    """A folder with the files of a revision; this repository as it is for None."""
    if revision is None:
        return ROOT
    folder = place.root / "code" / revision
    if not (folder / "pyproject.toml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def row_of(trial: Trial, seed: int) -> dict[str, Any]:
    """What a result says about its trial."""
    row = {**dataclasses.asdict(trial), "seed": seed}
    del row["seeds"]
    return row


def save_result(trial: Trial, seed: int, place: Place, figures: Mapping[str, Any]) -> None:
    """Write what a trial reached, whole or not at all."""
    path = place.result(trial.name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {**row_of(trial, seed), **figures}
    durable.replace_file(path, json.dumps(row, indent=1, sort_keys=True).encode())
