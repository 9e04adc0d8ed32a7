"""Search of the guidance scale and schedule whose samples are closest to the training images.

Every setting draws images of the same classes with the same random numbers, so that settings differ by their effect,
not by luck; the best one then has to beat the one in force with fresh random numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foundation.config import require, to_dict
from foundation.errors import ConfigError
from foundation.images.image_set import ImageSet
from foundation.randomness import permutation
from foundation.storage import durable
from pipeline.evaluation.distances import FeatureMoments, frechet_distance
from pipeline.evaluation.extractors import FeatureExtractor, named_extractor
from pipeline.generation.drawing import SampleRequest, draw
from pipeline.generation.files import INDEX, GeneratorIndex, read_index
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.outputs import decode_batch
from pipeline.generation.requests import seeds_of
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split
from pipeline.runs.models import open_generator
from stage2_prior.decoding.sampling import SamplingConfig

LOG = "evaluation/guidance.jsonl"
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.5)
SCHEDULES: tuple[dict[str, Any], ...] = (
    {"schedule": "constant"},
    {"schedule": "linear"},
    {"schedule": "power-cosine", "schedule_power": 1.0},
    {"schedule": "power-cosine", "schedule_power": 2.0},
    {"schedule": "step", "schedule_start": 0.18},
)
_REFINEMENTS = 2
_MOST_REAL = 10_000


@dataclass(frozen=True)
class Scored:
    """A setting and the Frechet distance of its samples to the run's images."""

    sampling: SamplingConfig
    distance: float

    def line(self) -> str:
        """For the table."""
        sampling = self.sampling
        detail = {
            "power-cosine": f" (power {sampling.schedule_power:g})",
            "step": f" (from {sampling.schedule_start:g})",
        }.get(sampling.schedule, "")
        return f"{self.distance:10.4g}  {sampling.guidance_scale:6.3f}  {sampling.schedule}{detail}"


class SampleJudge:
    """The Frechet distance of samples to given images, in an extractor's features.

    Args:
        generator: draws; of a class-conditional prior.
        images: what the samples are compared with; at most 10,000 of them.
        extractor: makes the features, on the generator's device.
        n_images: samples for one distance, of all classes in turn.
    """

    def __init__(self, generator: ImageGenerator, images: ImageSet, extractor: FeatureExtractor, n_images: int) -> None:
        self._generator, self._extractor, self._n = generator, extractor, n_images
        self._batch = decode_batch(generator.n_pixels)
        self._real = FeatureMoments(extractor.n_features)
        chosen = permutation(len(images), "tune guidance")[:_MOST_REAL]
        for start in range(0, len(chosen), self._batch):
            self._add(self._real, images.images(chosen[start : start + self._batch]).to(generator.device))

    @torch.no_grad()
    def distance(self, sampling: SamplingConfig, seed: int) -> float:
        """The distance of ``n_images`` samples drawn with a seed."""
        generator, drawn = self._generator, FeatureMoments(self._extractor.n_features)
        labels = [i % generator.prior.n_classes for i in range(self._n)]
        request = SampleRequest(labels=labels, seeds=seeds_of(seed, self._n), sampling=sampling)
        codes = generator.spec.grid(draw(generator.prior, request, show_progress=False))
        for part in codes.split(self._batch):
            self._add(drawn, generator.tokenizer.decode(part))
        return frechet_distance(self._real, drawn)

    def _add(self, moments: FeatureMoments, images_BCYX: torch.Tensor) -> None:
        moments.update(self._extractor(images_BCYX).cpu().numpy().astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How guidance is searched."""

    images: int = 1000
    """samples for each setting; more tell closer settings apart"""
    extractor: str = "small"
    """features that are compared: inception, dinov2, or small, which needs no file"""
    weights: str | None = None
    """the extractor's weights; null takes its cached or downloaded ones"""
    seed: int = 0
    """of the samples"""

    def __post_init__(self) -> None:
        require(self.images > 1, "images", self.images, "2 or more, better 1,000")
        require(self.seed >= 0, "seed", self.seed, "a whole number from 0")


def tune_guidance(run: str, tuning: Tuning, device: str, *, write: bool = True) -> Scored:
    """Search, and make the best setting the run's default if it beats the one in force.

    The new default is in ``model_index.json``; ``evaluation/guidance.jsonl`` gets a line with the old and the new one.

    Args:
        run: the run folder.
        tuning: how to search.
        device: where to compute.
        write: False only prints.

    Returns:
        The setting in force afterwards, or that would be, with its distance.

    Raises:
        ConfigError: a prior that cannot be guided, or an extractor that does not exist.
        DataError: more samples than fit in memory.
    """
    folder = RunFolder(Path(run))
    recipe = folder.load_recipe()
    generator = open_generator(run, device)
    if not generator.labels or generator.label_dropout == 0:
        expected = "a prior trained with classes and label_dropout"
        raise ConfigError("has no guidance to tune", field="run", found=run, expected=expected)
    generator.require_memory(tuning.images, generator.settings({"output_type": "latent"}))
    extractor = named_extractor(tuning.extractor, tuning.weights)
    if extractor is None:
        raise ConfigError("is needed", field="--extractor", found="none", expected="inception, dinov2 or small")
    train, _ = open_run_split(folder, recipe, "train")
    judge = SampleJudge(generator, train, extractor.to(generator.device), tuning.images)
    print(
        f"Frechet distance ({extractor.name}) of {tuning.images:,} samples to the training images\n"
        f"{'distance':>10}  {'scale':>6}  schedule"
    )
    best = search(judge, generator.defaults, tuning.seed)
    fresh = tuning.seed + 1
    old, new = (Scored(each, judge.distance(each, fresh)) for each in (generator.defaults, best.sampling))
    print(f"with fresh random numbers\n{old.line()}  in force\n{new.line()}  found")
    if new.distance >= old.distance:
        print("what is in force stays: nothing found is better")
        return old
    if write:
        _write(folder, old, new, tuning)
    return new


def search(judge: SampleJudge, base: SamplingConfig, seed: int) -> Scored:
    """The best of all schedules on a few scales, then of scales between its neighbours, twice."""
    found: list[Scored] = []

    def try_out(schedule: dict[str, Any], scale: float) -> None:
        sampling = dataclasses.replace(base, **schedule, guidance_scale=scale)
        found.append(Scored(sampling, judge.distance(sampling, seed)))
        print(found[-1].line(), flush=True)

    try_out(SCHEDULES[0], 1.0)
    for schedule in SCHEDULES:
        for scale in SCALES[1:]:  # 1 is the same for all
            try_out(schedule, scale)
    for _ in range(_REFINEMENTS):
        best = min(found, key=lambda each: each.distance)
        schedule = {name: getattr(best.sampling, name) for name in ("schedule", "schedule_power", "schedule_start")}
        for scale in _between(best.sampling.guidance_scale, _scales_of(found, schedule)):
            try_out(schedule, scale)
    return min(found, key=lambda each: each.distance)


def _scales_of(found: Sequence[Scored], schedule: dict[str, Any]) -> list[float]:
    alike = [each.sampling for each in found if all(getattr(each.sampling, k) == v for k, v in schedule.items())]
    return sorted({1.0, *(each.guidance_scale for each in alike)})


def _between(scale: float, known: list[float]) -> list[float]:
    """The middle between a scale and each of its neighbours."""
    i = known.index(scale)
    return [round((scale + other) / 2, 4) for other in known[max(0, i - 1) : i] + known[i + 1 : i + 2]]


def _write(folder: RunFolder, old: Scored, new: Scored, tuning: Tuning) -> None:
    index = read_index(folder.root)
    tuned = GeneratorIndex(new.sampling, index.label_dropout, index.tuned_from or index.sampling)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "old": to_dict(old.sampling),
        "old_distance": old.distance,
        "new": to_dict(new.sampling),
        "new_distance": new.distance,
        "search": to_dict(tuning),
    }
    durable.append_line(folder.root / LOG, json.dumps(line))
    durable.replace_file(folder.root / INDEX, tuned.text().encode())
    print(f"now the default in {folder.root / INDEX}; the old one is kept in {folder.root / LOG}")
