"""Search of the guidance scale and schedule whose samples are closest to the training images.

Classes are drawn as often as the training codes have them. Every setting is drawn several times, each time with the
random numbers that all settings share, so that settings differ by their effect, not by luck. The best one then has to
beat the one in force with fresh random numbers, by more than twice the standard error of the paired difference.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foundation.config import require, to_dict
from foundation.errors import ConfigError
from foundation.images.buckets import batches_of_one_shape, grouped
from foundation.images.image_set import ImageSet
from foundation.images.preview import visible
from foundation.randomness import derive_seed, permutation
from foundation.storage import durable
from pipeline.evaluation.class_balance import class_draws, class_shares, shape_draws
from pipeline.evaluation.config import ExtractorName
from pipeline.evaluation.distances import FeatureMoments, frechet_distance
from pipeline.evaluation.extractors import FeatureExtractor, choose_extractor
from pipeline.generation.drawing import SampleRequest, draw
from pipeline.generation.files import INDEX, GeneratorIndex, read_index
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.outputs import decode_batch
from pipeline.generation.requests import seeds_of
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split
from pipeline.runs.models import open_generator
from stage2_prior.decoding.sampling import SamplingConfig

LOG, TABLE = "evaluation/guidance.jsonl", "evaluation/guidance.json"
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
_MOST_REPEATS = 1000
_BEYOND = 2.0
"""standard errors by which the default has to be beaten"""


@dataclass(frozen=True)
class Scored:
    """A setting and the Frechet distances of its samples to the run's images, one for each repeat."""

    sampling: SamplingConfig
    distances: tuple[float, ...]

    @property
    def distance(self) -> float:
        """The mean over the repeats."""
        return float(np.mean(self.distances))

    @property
    def error(self) -> float:
        """The standard error of the mean; NaN of a single repeat."""
        return standard_error(self.distances)

    def row(self) -> dict[str, Any]:
        """For the file."""
        return {**to_dict(self.sampling), "distances": self.distances, "mean": self.distance, "error": self.error}

    def line(self) -> str:
        """For the table."""
        sampling = self.sampling
        detail = {
            "power-cosine": f" (power {sampling.schedule_power:g})",
            "step": f" (from {sampling.schedule_start:g})",
        }.get(sampling.schedule, "")
        distance = f"{self.distance:10.4g} +- {self.error:<8.2g}"
        return f"{distance}  {sampling.guidance_scale:6.3f}  {sampling.schedule}{detail}"


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; NaN of fewer than two."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan


def is_beaten(old: Scored, new: Scored) -> bool:
    """Whether a setting is better beyond the noise: by more than twice the error of the paired difference."""
    gains = np.subtract(old.distances, new.distances)
    return bool(gains.mean() > 0 and gains.mean() > _BEYOND * standard_error(gains.tolist()))


class SampleJudge:
    """The Frechet distance of samples to given images, in an extractor's features.

    Args:
        generator: draws; of a class-conditional prior.
        images: what the samples are compared with; at most 10,000 of them.
        extractor: makes the features, on the generator's device.
        n_images: samples for one distance.
        shares: (K,) how often the data has each class; None takes all equally often.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        images: ImageSet,
        extractor: FeatureExtractor,
        n_images: int,
        shares: np.ndarray | None = None,
    ) -> None:
        self._generator, self._extractor, self._n = generator, extractor, n_images
        self._shares = np.ones(generator.prior.n_classes) if shares is None else shares
        self._batch = decode_batch(generator.n_pixels)
        self._real = FeatureMoments(extractor.n_features)
        chosen = permutation(len(images), "tune guidance")[:_MOST_REAL]
        for rows in batches_of_one_shape(images.buckets, chosen, self._batch):
            self._add(self._real, images.images(rows).to(generator.device))

    @torch.no_grad()
    def distance(self, sampling: SamplingConfig, seed: int) -> float:
        """The distance of ``n_images`` samples drawn with a seed."""
        generator, drawn = self._generator, FeatureMoments(self._extractor.n_features)
        labels = class_draws(self._shares, self._n, seed)
        seeds = seeds_of(seed, self._n)
        for grid, rows in grouped(shape_draws(generator, self._n, seed)):
            of_shape = {"labels": [labels[i] for i in rows], "seeds": [seeds[i] for i in rows], "grid": grid}
            request = SampleRequest(**of_shape, sampling=sampling)  # type: ignore[arg-type]
            codes = generator.spec.grid(draw(generator.prior, request, show_progress=False), grid)
            for part in codes.split(self._batch):
                self._add(drawn, generator.tokenizer.decode(part))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few images: said once, in the table's head
            return frechet_distance(self._real, drawn)

    def _add(self, moments: FeatureMoments, images_BCYX: torch.Tensor) -> None:
        seen_BCYX = visible(images_BCYX, self._generator.spec.preprocess)
        moments.update(self._extractor(seen_BCYX).cpu().numpy().astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How guidance is searched."""

    images: int = 1000
    """samples for each setting and repeat; more tell closer settings apart"""
    repeats: int = 4
    """how often each setting is sampled, with other random numbers, 2 or more; they give its standard error"""
    extractor: ExtractorName = "auto"
    """features that are compared; auto is lite0 where its package is installed, and small of tiny grey images"""
    weights: str | None = None
    """the extractor's weights; null takes its cached or downloaded ones"""
    seed: int = 0
    """of the samples"""

    def __post_init__(self) -> None:
        require(self.images > 1, "images", self.images, "2 or more, better 1,000")
        require(2 <= self.repeats <= _MOST_REPEATS, "repeats", self.repeats, f"from 2 to {_MOST_REPEATS}")
        require(self.seed >= 0, "seed", self.seed, "a whole number from 0")


def tune_guidance(run: str, tuning: Tuning, device: str, *, write: bool = True) -> Scored:
    """Search, and make the best setting the run's default if it beats the one in force beyond the noise.

    The table is in ``evaluation/guidance.json``. A new default is in ``model_index.json``, and
    ``evaluation/guidance.jsonl`` gets a line with the old and the new one.

    Args:
        run: the run folder.
        tuning: how to search.
        device: where to compute.
        write: False only prints.

    Returns:
        The setting in force afterwards, or that would be, with its distances.

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
    extractor = choose_extractor(tuning.extractor, tuning.weights, generator.spec.preprocess)
    if extractor is None:
        raise ConfigError(
            "is needed", field="--extractor", found="none", expected="auto, lite0, inception, dinov2 or small"
        )
    what, fix = "needs images, and this run was trained on codes", "sample with --guidance-scale to compare by eye"
    ConfigError.unless(recipe.codes is None, what, field="run", found=str(folder.root), fix=fix)
    train, _ = open_run_split(folder, recipe, "train")
    shares = class_shares(folder, generator)
    judge = SampleJudge(generator, train, extractor.to(generator.device), tuning.images, shares)
    _print_head(extractor, tuning)
    seeds = [derive_seed("tune guidance", tuning.seed, i) % 2**31 for i in range(3 * tuning.repeats)]
    tried = search(judge, generator.defaults, seeds[: tuning.repeats])
    best, fresh = min(tried, key=lambda each: each.distance), seeds[tuning.repeats :]
    old, new = (_scored(judge, each, fresh) for each in (generator.defaults, best.sampling))
    print(f"with fresh random numbers, {len(fresh)} repeats\n{old.line()}  in force\n{new.line()}  found")
    better = is_beaten(old, new)
    gains = np.subtract(old.distances, new.distances)
    gain = f"what was found is {gains.mean():.3g} +- {standard_error(gains.tolist()):.2g} closer"
    stays = "not beyond twice the standard error: what is in force stays"
    print(f"{gain}, {'beyond twice the standard error' if better else stays}")
    if write:
        about = {"search": to_dict(tuning), "class_shares": (shares / shares.sum()).tolist(), "changed": better}
        rows = {"tried": [each.row() for each in tried], "fresh": {"in force": old.row(), "found": new.row()}}
        durable.replace_file(folder.root / TABLE, json.dumps({**about, **rows}, indent=1).encode())
        print(f"the table is in {folder.root / TABLE}")
    if better and write:
        _write(folder, old, new, tuning)
    return new if better else old


def _print_head(extractor: FeatureExtractor, tuning: Tuning) -> None:
    print(
        f"Frechet distance ({extractor.name}) of {tuning.images:,} samples to the training images, "
        f"mean and standard error of {tuning.repeats} repeats; classes as often as the training codes have them"
    )
    if tuning.images <= extractor.n_features:
        print(
            f"(fewer samples than features, {extractor.n_features:,}: distances compare here, not with other figures)"
        )
    print(f"{'distance':>10} +- {'error':<8}  {'scale':>6}  schedule")


def _scored(judge: SampleJudge, sampling: SamplingConfig, seeds: Sequence[int]) -> Scored:
    return Scored(sampling, tuple(judge.distance(sampling, seed) for seed in seeds))


def search(judge: SampleJudge, base: SamplingConfig, seeds: Sequence[int]) -> list[Scored]:
    """All schedules on a few scales, then scales between the neighbours of the best, twice; a repeat for each seed."""
    found: list[Scored] = []

    def try_out(schedule: dict[str, Any], scale: float) -> None:
        found.append(_scored(judge, dataclasses.replace(base, **schedule, guidance_scale=scale), seeds))
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
    return found


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
        "old_error": old.error,
        "new": to_dict(new.sampling),
        "new_distance": new.distance,
        "new_error": new.error,
        "search": to_dict(tuning),
    }
    durable.append_line(folder.root / LOG, json.dumps(line))
    durable.replace_file(folder.root / INDEX, tuned.text().encode())
    print(f"now the default in {folder.root / INDEX}; the old one is kept in {folder.root / LOG}")
