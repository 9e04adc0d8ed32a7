"""Summary of a run, finished or not: what was trained on what, how far it is, how good, and how long it took."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from foundation.codes.manifest import MANIFEST, read_manifest
from foundation.codes.spec import CodeSpec
from foundation.config import from_dict, to_dict
from foundation.errors import CheckpointError
from foundation.storage.serialization import read_json
from foundation.training.config import FitConfig
from foundation.training.log import read_metrics
from pipeline.planning.ledger import read_times
from pipeline.runs.duration import duration
from pipeline.runs.folder import RunFolder
from pipeline.runs.found_images import inventory_of
from pipeline.runs.recipe import Recipe

STAGES = ("tokenizer", "prior")


@dataclass(frozen=True)
class RunSummary:
    """What a run folder says, read without loading a network.

    Args:
        folder: of a run that began.

    Raises:
        CheckpointError: there is no run, or a part of it is damaged.
    """

    folder: RunFolder

    @cached_property
    def recipe(self) -> Recipe:
        """Of the run."""
        return self.folder.load_recipe()

    @cached_property
    def spec(self) -> CodeSpec | None:
        """Of the codes; None before there is a tokenizer or codes."""
        if (self.folder.codes / MANIFEST).is_file():
            return from_dict(CodeSpec, read_manifest(self.folder.codes)["spec"], "spec")
        file = self.folder.tokenizer / "code_spec.json"
        return from_dict(CodeSpec, read_json(file, (), fix="restore it"), "code_spec") if file.is_file() else None

    def rows(self, stage: str, kind: str) -> list[dict[str, Any]]:
        """Lines of the log, of ``train``, ``held_out`` or ``warning``; complete ones alone."""
        rows = [row for row in self._log if row["stage"] == stage and row["kind"] == kind]
        needed = {"tokenizer": "psnr", "prior": "nats_per_code"}[stage] if kind == "held_out" else "step"
        return [row for row in rows if needed in row]

    @cached_property
    def _log(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder.metrics)

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Of each stage that is finished."""
        files = {stage: self.folder.root / stage / "model.safetensors" for stage in STAGES}
        return {stage: count_parameters(file) for stage, file in files.items() if file.is_file()}

    @cached_property
    def images(self) -> dict[str, int]:
        """Images of each split; without images, rows of codes."""
        found = inventory_of(self.folder)
        if found:
            return {name: each["used"] for name, each in found["splits"].items()}
        if (self.folder.codes / MANIFEST).is_file():
            return {name: each["rows"] for name, each in read_manifest(self.folder.codes)["splits"].items()}
        return {}

    @cached_property
    def times(self) -> dict[str, dict[str, float]]:
        """Seconds of each part, ``expected`` and ``taken``; of a stage that trains, until the log's last line."""
        times = read_times(self.folder.times)
        if not times or self.folder.has_samples():
            return times
        taken = dict(times.get("taken", {}))
        for stage in STAGES:
            taken[stage] = max(taken.get(stage, 0.0), self._logged(stage))
        return {**times, "taken": {part: seconds for part, seconds in taken.items() if seconds}}

    def _logged(self, stage: str) -> float:
        """Seconds of training in the log, which begin at 0 in each process that continued."""
        known = [row["seconds"] for row in self.rows(stage, "train") if row.get("seconds") is not None]
        ends = [each for each, after in itertools.pairwise([*known, 0.0]) if after < each]
        return math.fsum(ends)

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(self.times.get("taken", {}).values())

    def fit(self, stage: str) -> FitConfig:
        """Length and batch of a stage."""
        return (self.recipe.tokenizer if stage == "tokenizer" else self.recipe.prior).training.fit

    def steps(self, stage: str) -> tuple[int, int]:
        """Optimizer steps taken, as far as the log says, and planned."""
        planned = self.fit(stage).steps
        if (self.folder.root / stage).is_dir():
            return planned, planned
        rows = self.rows(stage, "train")
        return (rows[-1]["step"] + 1 if rows else 0), planned

    @property
    def state(self) -> str:
        """How far the run is, in words."""
        if self.folder.has_samples():
            return "finished"
        if self.folder.prior.is_dir():
            return "the prior is trained, nothing is sampled yet"
        for stage in reversed(STAGES):
            taken, planned = self.steps(stage)
            if taken:
                return f"training the {stage}: step {taken:,} of {planned:,}"
            if stage == "prior" and (self.folder.codes / MANIFEST).is_file():
                return "the codes are there, the prior comes next"
            if stage == "prior" and self.folder.tokenizer.is_dir():
                return "the tokenizer is trained, encoding comes next"
        return "before the first step"

    @cached_property
    def figures(self) -> dict[str, float]:
        """Figures of the last evaluations in training, by ``stage.name``."""
        found: dict[str, float] = {}
        for stage, names in _FIGURES.items():
            rows = self.rows(stage, "held_out")
            row = rows[-1] if rows else {}
            found |= {f"{stage}.{name}": row[name] for name in names if row.get(name) is not None}
        return found

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Files of ``tessera evaluate`` and ``tune-guidance`` in the run, by name; unreadable ones left out."""
        found = {}
        for path in sorted((self.folder.root / "evaluation").glob("*.json")):
            try:
                found[path.stem] = read_json(path, (), fix="")
            except CheckpointError:  # being written, or damaged: they are figures that a command makes again
                continue
        return found

    @property
    def warnings(self) -> list[str]:
        """Of the training, the newest last."""
        return [f"{row['stage']}, step {row['step']:,}: {row['text']}" for row in self._log if row["kind"] == "warning"]

    def sentence(self) -> str:
        """What made the images, in a sentence."""
        spec, parts = self.spec, []
        if spec is None:
            return f"{self.recipe.description}"
        if "prior" in self.parameters:
            parts.append(f"A prior of {millions(self.parameters['prior'])} parameters samples {codes_in_words(spec)}")
        if "tokenizer" in self.parameters:
            made = "a tokenizer of" if parts else "A tokenizer of"
            parts.append(f"{made} {millions(self.parameters['tokenizer'])} makes pixels of them")
        learned = f"trained on {self.images['train']:,} {'images' if spec.knows_images else 'rows of codes'}"
        took = f" in {duration(self.seconds)}" if self.seconds else ""
        return f"{', '.join(parts)}; {learned if 'train' in self.images else 'trained'}{took}." if parts else ""

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "run": str(self.folder.root),
            "recipe": to_dict(self.recipe),
            "state": self.state,
            "images": self.images,
            "parameters": self.parameters,
            "steps": {stage: dict(zip(("taken", "planned"), self.steps(stage), strict=True)) for stage in STAGES},
            "figures": self.figures,
            "seconds": self.times.get("taken", {}),
            "warnings": self.warnings,
            "evaluations": _finite(self.evaluations),
        }


_FIGURES = {
    "tokenizer": ("psnr", "ssim", "code_usage", "code_perplexity"),
    "prior": ("bits_per_code", "unigram_bits_per_code", "below_unigram", "bits_per_image"),
}


def _finite(value: Any) -> Any:
    """The same without numbers that JSON does not have: None in their place."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def codes_in_words(spec: CodeSpec) -> str:
    """The grid and its codebook: 8 x 8 codes of 1,024."""
    if spec.latents:
        level = spec.levels[0]
        return f"{level.height} x {level.width} latents of {level.depth} channels"
    grids = " and ".join(f"{level.height} x {level.width}" for level in spec.levels)
    depth = f" at {spec.levels[0].depth} depths" if spec.levels[0].depth > 1 else ""
    return f"{grids} codes of {spec.codebook_size:,}{depth}"


def count_parameters(file: Path) -> int:
    """Numbers in a file of tensors, by its header."""
    from safetensors import safe_open

    with safe_open(str(file), "pt") as tensors:
        names: list[str] = list(tensors.keys())
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def millions(count: int) -> str:
    """A count of parameters: 1.07 million."""
    return f"{count / 1e6:,.3g} million" if count < 1e9 else f"{count / 1e9:,.3g} billion"
