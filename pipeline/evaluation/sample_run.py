"""Evaluation of a run's samples: draws them, or takes given images, and writes scores, a picture and an .npz file."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foundation.codes.dataset import TokenDataset
from foundation.codes.spec import require_same_codes
from foundation.config import to_dict
from foundation.errors import ConfigError
from foundation.images.image_set import ImageSet
from foundation.images.preview import Preview
from foundation.storage import durable
from pipeline.evaluation.class_balance import class_shares
from pipeline.evaluation.extractors import FeatureExtractor
from pipeline.evaluation.features import ImageFeatures, features_of_set
from pipeline.evaluation.given_images import open_given
from pipeline.evaluation.memorisation import neighbours_picture
from pipeline.evaluation.nearest import nearest_features
from pipeline.evaluation.npz import PixelSpool
from pipeline.evaluation.reading import print_left_out, seen_in_words
from pipeline.evaluation.real_images import RealImages, chosen_rows, open_real
from pipeline.evaluation.sample_table import SampleReport
from pipeline.evaluation.sampled import SamplePlan, draw_features
from pipeline.evaluation.samples import CodeSets, SampleScores, score_features
from pipeline.generation.generator import ImageGenerator
from pipeline.output_files import Outputs, output_at
from pipeline.runs.folder import RunFolder
from pipeline.runs.models import open_generator
from pipeline.runs.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.engines.stream import Engine
    from pipeline.evaluation.config import SampleOptions

_SHOWN, _NEIGHBOURS = 12, 4
_CODE_COMPARISONS = 2 * 10**10
"""single codes that are compared to find copies; of more, a choice of training rows is taken"""


@dataclass(frozen=True)
class _ToScore:
    """Images to score.

    Attributes:
        features: of each, and its class.
        words: what they are.
        look: indices => (N, Y, X, 1 or 3) uint8, or None where they have several shapes.
        about: more for the file.
        codes: of samples beside the run's; None where they are not known.
        code_names: of the rows of training codes.
    """

    features: ImageFeatures
    words: str
    look: Callable[[np.ndarray], np.ndarray | None]
    about: dict[str, Any]
    codes: CodeSets | None = None
    code_names: Sequence[str] = ()


def evaluate_run_samples(
    folder: RunFolder,
    recipe: Recipe,
    options: SampleOptions,
    extractor: FeatureExtractor,
    device: str,
    engine: Engine,
) -> dict[str, Any]:
    """Score samples of a run; print a table and write ``evaluation/samples-EXTRACTOR*.json`` and a picture.

    Args:
        folder: the run.
        recipe: of the run.
        options: which samples, and what they are compared with.
        extractor: on the device.
        device: of the models.
        engine: draws, reads and computes features.

    Returns:
        the figures, as written.

    Raises:
        ConfigError: options that exclude each other, or a file that is not ours to replace.
        DataError: nothing to read, or too few images.
        CheckpointError: the run has no prior.
    """
    outputs, real = _npz_place(folder, options), open_real(folder, recipe, options)
    if options.images is None:
        scored = _drawn(folder, recipe, options, device, extractor, engine, outputs)
    else:
        scored = _given(options.images, recipe, options, real, extractor, engine)
    training, kept_N = features_of_set(real.training, real.training_rows, extractor, engine)
    held_out, _ = features_of_set(real.held_out, real.held_out_rows, extractor, engine)
    for images in {id(each): each for each in (real.training, real.held_out)}.values():
        print_left_out(images)
    scores = score_features(scored.features, training, held_out, extractor, codes=scored.codes, seed=options.seed)
    words = real.training_in_words, real.held_out_in_words
    report = SampleReport(scores, scored.words, *words, seen_in_words(recipe.data.preprocess))
    print(report.table())
    names = [real.training.ids[int(i)] for i in kept_N]
    found = {**report.as_json(), **scored.about, "seed": options.seed, **_nearest(scores, names, scored.code_names)}
    path = folder.root / "evaluation" / f"{_name(options, extractor)}.json"
    durable.replace_file(path, json.dumps(found, indent=1).encode())
    print(f"also in {path}")
    closest = scores.near_features.closest[:_SHOWN]
    _, neighbours_NK = nearest_features(scored.features.features_NF[closest], training.features_NF, _NEIGHBOURS)
    _draw_neighbours(path.with_suffix(".png"), scored.look(closest), real, kept_N[neighbours_NK])
    return found


def _name(options: SampleOptions, extractor: FeatureExtractor) -> str:
    marks = [name for name in ("images", "reference") if getattr(options, name) is not None]
    return "-".join(["samples", extractor.name, *marks])


def _nearest(scores: SampleScores, names: Sequence[str], code_names: Sequence[str]) -> dict[str, Any]:
    found = {"nearest": scores.near_features.as_json(names)}
    return found if scores.near_codes is None else {**found, "nearest_codes": scores.near_codes.as_json(code_names)}


def _npz_place(folder: RunFolder, options: SampleOptions) -> Outputs | None:
    """Where the .npz file goes, checked before anything is computed."""
    if options.npz is None:
        return None
    path = Path(options.npz)
    ConfigError.unless(path.suffix == ".npz", "is no name for it", field="--npz", found=path, expected="NAME.npz")
    settings = {"command": "evaluate --npz", "run": str(folder.root.resolve()), "seed": options.seed}
    return output_at(path, {**settings, "samples": options.n_samples}, "--npz")


def _drawn(
    folder: RunFolder,
    recipe: Recipe,
    options: SampleOptions,
    device: str,
    extractor: FeatureExtractor,
    engine: Engine,
    outputs: Outputs | None,
) -> _ToScore:
    """Samples of the run's generator with its default settings, also in an .npz file if one is wanted."""
    generator = open_generator(str(folder.root), device)
    several, classes = generator.spec.n_grids > 1, generator.prior.n_classes
    what, fix = "holds images of one shape, and this run has several", "leave it out"
    ConfigError.unless(outputs is None or not several, what, field="--npz", found=options.npz, fix=fix)
    shares_K = class_shares(folder, generator) if classes else np.empty(0)
    plan = SamplePlan.of(generator, options.n_samples, shares_K, options.seed)
    with contextlib.closing(PixelSpool()) as spool:
        features, codes_NT = draw_features(generator, plan, extractor, engine, None if outputs is None else spool.add)
        if outputs is not None:
            path = outputs.publish(Path(str(options.npz)).name, lambda at: spool.write_npz(at, features.labels_N))
            print(f"{len(spool):,} samples in {path}")

    def look(rows: np.ndarray) -> np.ndarray | None:
        codes = generator.spec.grid(torch.from_numpy(codes_NT[rows]).to(generator.device), 0)
        return None if several else np.asarray(generator.tokenizer.preview.of_images(generator.decode(codes)))

    drawn = "drawn with the run's default settings" + (", classes as often as in its data" if classes else "")
    codes, names = (None, []) if options.reference else _codes(folder, recipe, generator, codes_NT)
    about = {"sampling": to_dict(generator.defaults)}
    return _ToScore(features, f"{drawn}, seed {options.seed}", look, about, codes, names)


def _given(
    data: str, recipe: Recipe, options: SampleOptions, real: RealImages, extractor: FeatureExtractor, engine: Engine
) -> _ToScore:
    """Images that exist: all, or a random choice of as many as are asked for."""
    images = open_given(data, recipe.data, real.class_names)
    n = len(images) if options.samples is None else options.samples
    expected = f"at most {len(images):,}, the images in {data}"
    ConfigError.unless(n <= len(images), "are more than there are", field="--samples", found=n, expected=expected)
    features, kept_N = features_of_set(images, chosen_rows(len(images), n, options.seed), extractor, engine)
    print_left_out(images)
    print(f"{len(features):,} of {n:,} images read from {data}")
    classes = "with the run's classes" if features.labels_N is not None else "without classes of the run"

    def look(rows: np.ndarray) -> np.ndarray | None:
        return _pixels(images, kept_N[rows])

    return _ToScore(features, f"images of {data}, {classes}", look, {"given": data})


def _codes(
    folder: RunFolder, recipe: Recipe, generator: ImageGenerator, codes_NT: np.ndarray
) -> tuple[CodeSets | None, list[str]]:
    """Codes of the run and of samples, and names of the training rows; None of images of several shapes."""
    if generator.spec.n_grids > 1:
        return None, []
    sets = [TokenDataset(folder.codes, split, recipe.machine.tokens) for split in ("train", "validation")]
    for each in sets:
        require_same_codes(generator.spec, each.spec, owner="the run", other="its token dataset")
    most = max(1, _CODE_COMPARISONS // codes_NT.size)
    rows = [chosen_rows(len(each), most, 0) for each in sets]
    training_MT, held_out_LT = (np.asarray(each.codes_NT[chosen]) for each, chosen in zip(sets, rows, strict=True))
    return CodeSets(codes_NT, training_MT, held_out_LT), [str(sets[0].image_ids[int(i)]) for i in rows[0]]


def _draw_neighbours(path: Path, samples_NYXC: np.ndarray | None, real: RealImages, rows_NK: np.ndarray) -> None:
    """Write a picture of samples beside their nearest neighbours, of images of one shape."""
    neighbours_KYXC = _pixels(real.training, rows_NK.ravel())
    if samples_NYXC is None or neighbours_KYXC is None:
        print("no picture of nearest neighbours: images have several shapes")
        return
    content = io.BytesIO()
    shape = (*rows_NK.shape, *neighbours_KYXC.shape[1:])
    neighbours_picture(samples_NYXC, neighbours_KYXC.reshape(shape)).save(content, "PNG")
    durable.replace_file(path, content.getvalue())
    print(f"the samples nearest to {real.training_in_words}, beside their {rows_NK.shape[1]} neighbours: {path}")


def _pixels(images: ImageSet, rows: np.ndarray) -> np.ndarray | None:
    """What a screen shows of images; None where they have several shapes."""
    if images.buckets is not None and len(np.unique(images.buckets[rows])) > 1:
        return None
    return Preview(images.preprocess)(images.pixels(rows))
