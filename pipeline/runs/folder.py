"""Run folder: paths of its parts, and the recipe that owns it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.codes.config import CODES_ADDRESS
from foundation.config import differences, to_dict
from foundation.errors import CheckpointError
from foundation.storage import durable
from foundation.training.heartbeat import SAY_SECONDS
from pipeline.runs.recipe import RELOCATABLE, Recipe, determining, load_recipe, recipe_text

if TYPE_CHECKING:
    from filelock import FileLock

_LENGTHS = {f"{stage}.training.fit.steps": stage for stage in ("tokenizer", "prior")}
"""field of a recipe => the stage whose length it is"""


class _Below:
    """Path of a part below a run folder's root."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunFolder, owner: type) -> Path:
        return folder.root / self._name


@dataclass(frozen=True)
class RunFolder:
    """Paths below ``root``; a part that exists is complete."""

    root: Path
    recipe = _Below("recipe.yaml")
    """resolved recipe"""
    tokenizer = _Below("tokenizer")
    """frozen tokenizer, a model folder"""
    codes = _Below("codes")
    """token dataset"""
    codes_address = _Below(CODES_ADDRESS)
    """where the token dataset is, if it is at an address; ``codes`` then has copies"""
    prior = _Below("prior")
    """prior, a model folder"""
    samples = _Below("samples")
    """sample grid and its codes"""
    gallery = _Below("uses")
    """pictures of edited validation images"""
    metrics = _Below("metrics.jsonl")
    """metrics of both stages, JSON lines"""
    listing = _Below("images.parquet")
    """images that the run began with: split, label, size and time of the file, hash of the pixels where it is known"""
    tokenizer_listing = _Below("tokenizer_images.parquet")
    """the same of the run that trained a given tokenizer"""
    failures = _Below("failed_images.jsonl")
    """unusable images, one JSON object per line"""
    report = _Below("report.html")
    """report"""
    tracking = _Below("tracking")
    """ids and files of trackers"""
    times = _Below("times.json")
    """seconds of each part, expected and taken"""
    note = _Below("mirror.json")
    """where the run is mirrored, if it is"""

    def checkpoints(self, stage: str) -> Path:
        """Checkpoints of ``tokenizer`` or ``prior``."""
        return self.root / "checkpoints" / stage

    def previews(self, stage: str) -> Path:
        """Pictures of the evaluations of ``tokenizer`` or ``prior``."""
        return self.root / "previews" / stage

    def claim(self, recipe: Recipe, extend: Extend | None = None) -> None:
        """Write the recipe into the folder, or compare it with the recipe of the parts that exist.

        Args:
            recipe: the resolved recipe.
            extend: called with (this folder, stage, old steps, new steps) where a stage that exists goes on to another
                number of steps, before anything is written; None refuses that.

        Raises:
            CheckpointError: another recipe made a part; names the fields that differ. Or a stage cannot be extended.
        """
        rows = self._differences(recipe)
        for name, old, new in self.compare(recipe, may_extend=extend is not None):
            assert extend is not None
            extend(self, _LENGTHS[name], old, new)
        if rows or not self.recipe.exists():
            durable.replace_file(self.recipe, recipe_text(recipe, self.root).encode())

    def compare(self, recipe: Recipe, *, may_extend: bool, shown: str | None = None) -> list[tuple[str, Any, Any]]:
        """Compare a recipe with the recipe of the parts that exist.

        Args:
            recipe: the resolved recipe.
            may_extend: whether a stage may go on to another number of steps.
            shown: what an error calls the folder; None calls it by its path.

        Returns:
            (field, steps, other steps) of the stages that exist and go on to another number of steps.

        Raises:
            CheckpointError: another recipe made a part; names the fields that differ.
        """
        begun = [row for row in self._differences(recipe) if row[0].split(".")[0] in self._begun()]
        begun = [row for row in begun if not _is_moved(*row)]
        lengths = [row for row in begun if row[0] in _LENGTHS] if may_extend else []
        wrong = [row for row in begun if row not in lengths]
        if wrong:
            rows = "".join(f"\n    {name}: the folder has {one!r}, the recipe {other!r}" for name, one, other in wrong)
            what = f"the run folder belongs to another recipe; differences:{rows}"
            fix = "give another --out" if shown is None else "give another --mirror"
            raise CheckpointError(what, field=shown or str(self.root), fix=fix)
        return lengths

    def _differences(self, recipe: Recipe) -> list[tuple[str, Any, Any]]:
        if not self.recipe.exists():
            return []
        return differences(determining(to_dict(self.load_recipe())), determining(to_dict(recipe)))

    def is_moved(self, recipe: Recipe, section: str) -> bool:
        """Whether files that a section names lie at another place than in the folder's recipe."""
        return any(row[0].startswith(section) and _is_moved(*row) for row in self._differences(recipe))

    def has_samples(self) -> bool:
        """Whether the sample grid is complete."""
        return all((self.samples / name).is_file() for name in ("grid.png", "codes.npy", "samples.json"))

    def lock(self, seconds: float = 0.0) -> FileLock:
        """Lock the folder until this process ends, or the lock is released.

        Args:
            seconds: that another process's lock is waited for.

        Raises:
            CheckpointError: another process holds it.
        """
        from filelock import FileLock

        path = self.root / ".lock"
        held = FileLock(path)
        with durable.writing(path):
            if _acquired(held, min(seconds, SAY_SECONDS)):
                return held
            if seconds > SAY_SECONDS:
                print(f"waiting for the process that uses {self.root}, at most {seconds:g} s", file=sys.stderr)
                if _acquired(held, seconds - SAY_SECONDS):
                    return held
        what, fix = "another process uses this run folder", "wait for it, stop it, or give another --out"
        raise CheckpointError(what, field=str(self.root), fix=fix)

    def done(self) -> set[str]:
        """Names of what is complete: checkpoints, files of codes, models. Processes see it grow."""
        parts = ("checkpoints/*/step-*", "codes/data/*/*.parquet", "tokenizer", "prior", "samples/*")
        return {path.relative_to(self.root).as_posix() for part in parts for path in self.root.glob(part)}

    def sweep(self) -> None:
        """Remove temporary files of crashed processes; requires the run's lock."""
        shards = self.codes / "data"
        stages = [place(stage) for place in (self.checkpoints, self.previews) for stage in ("tokenizer", "prior")]
        above = {each.parent for each in stages}
        for folder in (self.root, *above, *stages, self.tracking, self.codes, shards, *shards.glob("*")):
            durable.sweep(folder)

    def _begun(self) -> set[str]:
        """Parts of the recipe that can no longer change, since results of them exist."""
        results = {
            "encode": [self.codes, self.codes_address],
            "prior": [self.prior, self.checkpoints("prior")],
            "samples": [self.samples],
        }
        begun = {part for part, paths in results.items() if any(path.exists() for path in paths)}
        if begun or self.tokenizer.exists() or self.checkpoints("tokenizer").exists():
            begun |= {"seed", "data", "tokenizer", "codes"}
        return begun

    def load_recipe(self) -> Recipe:
        """Read the run's recipe.

        Raises:
            CheckpointError: the folder is no run folder.
        """
        if not self.recipe.is_file():
            found = "a folder without recipe.yaml" if self.root.is_dir() else "no such folder"
            fix = "give the folder that tessera run printed, e.g. runs/digits"
            raise CheckpointError("is not a run folder", field=str(self.root), found=found, fix=fix)
        return load_recipe(str(self.recipe))


Extend = Callable[[RunFolder, str, int, int], None]


def _acquired(lock: FileLock, seconds: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _is_moved(name: str, one: object, other: object) -> bool:
    """Whether two recipes differ in where something is, not in what it is."""
    return name in RELOCATABLE and isinstance(one, str) and isinstance(other, str)
