"""Scores of a trial. The measures are this repository's as it is, for every revision that trained."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from foundation.codes.dataset import TokenDataset
from foundation.config import digest, to_dict
from foundation.images.preprocess import image_grid, to_pixels
from foundation.randomness import permutation
from pipeline.evaluation.extractors import FeatureExtractor, named_extractor
from pipeline.evaluation.features import ImageFeatures, features_of
from pipeline.evaluation.samples import score_features
from pipeline.evaluation.tokenizer import evaluate_tokenizer
from pipeline.generation.generator import ImageGenerator
from pipeline.planning.ledger import read_times
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split
from scripts.trials import llama
from scripts.trials.priors import prior_seconds
from scripts.trials.queue import Place, Trial
from stage2_prior.evaluate import score_prior

SAMPLES, REFERENCE = 2000, 10_000
"""drawn images, and training images that they are compared with"""
_PASSES = (64, 16, 8)
"""passes over a prior of any order for the samples of an image"""
_SHOWN = 8
"""samples of each class in the picture"""


@functools.cache
def _extractor() -> FeatureExtractor:
    found = named_extractor("lite0", None)
    assert found is not None
    return found


def score_run(trial: Trial, seed: int, place: Place) -> dict[str, Any]:
    """Figures of a finished run: reconstructions, held-out bits, samples."""
    folder = RunFolder(place.run(trial.name, seed))
    generator = ImageGenerator.from_pretrained(folder.root)
    labels = np.arange(SAMPLES) % len(generator.labels)
    began = time.perf_counter()
    samples = generator([int(each) for each in labels], seed=1_000_000, output_type="np").images
    seconds = (time.perf_counter() - began) / SAMPLES
    pixels = np.round(np.asarray(samples) * 255).astype(np.uint8)
    figures = {
        "seconds_an_image": seconds,
        **_of_tokenizer(folder, generator),
        **_of_samples(folder, place, pixels, labels),
    }
    if not generator.spec.latents:  # bits of a density are no bits of codes
        likelihood = score_prior(generator.prior, TokenDataset(folder.codes, "validation"))
        figures["bits"] = likelihood.metrics()["bits_per_code"] * generator.spec.n_codes
    if generator.prior.config.order in ("any", "masked"):
        figures.update(_in_passes(generator, folder, place, labels))
    _save_picture(trial, seed, place, pixels, labels)
    times = read_times(folder.times).get("taken", {})
    return {**_about(folder), "figures": figures, "parameters": _sizes(generator), "parts": times}


def _in_passes(generator: ImageGenerator, folder: RunFolder, place: Place, labels_N: np.ndarray) -> dict[str, float]:
    """Samples in Halton order with fewer passes, and seconds for an image."""
    figures = {}
    for passes in _PASSES:
        began = time.perf_counter()
        how: dict[str, Any] = {"seed": 1_000_000, "output_type": "np", "order": "halton", "passes": passes}
        samples = generator([int(each) for each in labels_N], **how).images
        seconds = (time.perf_counter() - began) / len(labels_N)
        found = _of_samples(folder, place, np.round(np.asarray(samples) * 255).astype(np.uint8), labels_N)
        of_passes = {"fd": found["fd"], "accuracy": found["accuracy"], "seconds_an_image": seconds}
        figures.update({f"{name}_{passes}_passes": value for name, value in of_passes.items()})
    return figures


def score_llama(trial: Trial, seed: int, place: Place) -> dict[str, Any]:
    """Train a Llama for the time of the other trial's prior and score it with that one's tokenizer."""
    assert trial.codes_of is not None
    folder = RunFolder(place.run(trial.codes_of, seed))
    recipe, generator = folder.load_recipe(), ImageGenerator.from_pretrained(folder.root)
    train, held_out = (TokenDataset(folder.codes, split) for split in ("train", "validation"))
    training = recipe.prior.training
    if "learning_rate" in trial.fields:
        rate = float(trial.fields["learning_rate"])
        training = dataclasses.replace(training, optim=dataclasses.replace(training.optim, learning_rate=rate))
    trained = llama.train_llama(train, recipe.prior.model, training, prior_seconds(folder), seed)
    labels = np.arange(SAMPLES) % trained.n_classes
    scale = recipe.samples.sampling.guidance_scale
    codes = llama.sample(trained, labels, generator.spec.n_codes, scale, seed=1_000_000)
    decoded = [generator.tokenizer.decode(generator.spec.grid(part)) for part in codes.split(250)]
    pixels = to_pixels(torch.cat(decoded), recipe.data.preprocess.bits)
    figures = {**_of_samples(folder, place, pixels, labels), "bits": llama.held_out_bits(trained, held_out)}
    _save_picture(trial, seed, place, pixels, labels)
    sizes = {"prior": sum(each.numel() for each in trained.model.parameters())}
    seconds = {"seconds": trained.seconds, "steps": trained.steps}
    return {**_about(folder), **seconds, "figures": figures, "parameters": sizes}


def _about(folder: RunFolder) -> dict[str, Any]:
    recipe = folder.load_recipe()
    chosen = {
        "tokenizer_steps": recipe.tokenizer.training.fit.steps,
        "prior_steps": recipe.prior.training.fit.steps,
        "guidance_scale": recipe.samples.sampling.guidance_scale,
    }
    machine = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    return {"machine": machine, "threads": torch.get_num_threads(), "chosen": chosen}


def _sizes(generator: ImageGenerator) -> dict[str, int]:
    parts = {"tokenizer": generator.tokenizer, "prior": generator.prior}
    return {name: sum(each.numel() for each in part.parameters()) for name, part in parts.items()}


def _of_tokenizer(folder: RunFolder, generator: ImageGenerator) -> dict[str, float]:
    images, _ = open_run_split(folder, folder.load_recipe(), "validation")
    found = evaluate_tokenizer(generator.tokenizer, images, extractor=_extractor()).metrics()
    kept = {"psnr": "psnr", "ssim": "ssim", "rfid_lite0": "rfd", "code_usage": "usage"}
    return {kept[name]: value for name, value in found.items() if name in kept}


def _of_samples(folder: RunFolder, place: Place, pixels_NYXC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    samples = features_of(pixels_NYXC, labels_N, _extractor())
    scores = score_features(samples, *_real(folder, place), _extractor(), n_replicates=2)  # seeds show the spread
    names = {"frechet_distance": "fd", "kernel_distance": "kd", "class_accuracy": "accuracy"}
    kept = ("precision", "recall", "density", "coverage", "inception_score")
    values = {names.get(name, name): each.value for name, each in scores.figures.items() if name in (*names, *kept)}
    real = {f"real_{names.get(name, name)}": each.value for name, each in scores.real.items() if name in names}
    return {**values, **real}


def _real(folder: RunFolder, place: Place) -> tuple[ImageFeatures, ImageFeatures]:
    """Features of training and held-out images, computed once for all trials of a queue on the same images."""
    recipe = folder.load_recipe()
    key = digest({"source": to_dict(recipe.data.source), "preprocess": to_dict(recipe.data.preprocess)})
    return _features(folder, "train", place, key), _features(folder, "validation", place, key)


def _features(folder: RunFolder, split: Literal["train", "validation"], place: Place, key: str) -> ImageFeatures:
    path = place.root / "real" / f"{key[:16]}-{split}.npz"
    if not path.is_file():
        images, _ = open_run_split(folder, folder.load_recipe(), split)
        chosen = np.sort(permutation(len(images), "reference of trials")[:REFERENCE])
        labels = np.asarray(images.labels)[chosen]
        found = features_of(images.pixels(chosen), labels, _extractor())
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, features_NF=found.features_NF, logits_NK=found.logits_NK, labels_N=labels)
    with np.load(path) as kept:
        return ImageFeatures(**kept)


def _save_picture(trial: Trial, seed: int, place: Place, pixels_NYXC: np.ndarray, labels_N: np.ndarray) -> None:
    """A row of samples of each class."""
    rows = [np.flatnonzero(labels_N == label)[:_SHOWN] for label in range(int(labels_N.max()) + 1)]
    picture: Image.Image = image_grid(pixels_NYXC[np.concatenate(rows)], _SHOWN, scale=2)
    path = place.picture(trial.name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
