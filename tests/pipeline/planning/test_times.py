"""Seconds of each part of a run from speeds and counts."""

import dataclasses

import pytest

from pipeline.planning.measure import PriorSpeed, TokenizerSpeed
from pipeline.planning.times import (
    ENCODE,
    EVALUATE_TOKENIZER,
    SAMPLE,
    TRAIN_PRIOR,
    TRAIN_TOKENIZER,
    Counts,
    Speeds,
    run_times,
)
from pipeline.runs.recipe import load_recipe

SPEEDS = Speeds(TokenizerSpeed(0.5, 0.2, 0.01, 0.02, 0.04), PriorSpeed(0.25, 0.002, 0.1), 0.001)
COUNTS = Counts(train=900, validation=100, classes=3)


def test_parts_add_up_from_steps_and_images() -> None:
    fit = {"steps": 100, "evaluate_every": 40}
    recipe = load_recipe("cifar10", {"tokenizer.training.fit": fit, "prior.training.fit": fit})
    times = run_times(recipe, COUNTS, SPEEDS)
    assert times[TRAIN_TOKENIZER] == pytest.approx(100 * 0.5)
    assert times[EVALUATE_TOKENIZER] == pytest.approx(4 * (100 + 8) * 0.04)  # steps 0, 40, 80 and 100; 8 are shown
    assert times[TRAIN_PRIOR] == pytest.approx(100 * 0.25)
    assert times[SAMPLE] == pytest.approx(3 * 10 * (0.1 + 0.02))
    once = load_recipe("cifar10", {"encode.flip": False})
    assert times[ENCODE] > 1.5 * run_times(once, COUNTS, SPEEDS)[ENCODE]  # mirror images too


def test_steps_before_the_adversary_starts_are_faster() -> None:
    overrides = {"tokenizer.training.fit.steps": 100, "tokenizer.training.adversarial.start_step": 60}
    times = run_times(load_recipe("cifar10-vqgan", overrides), COUNTS, SPEEDS)
    assert times[TRAIN_TOKENIZER] == pytest.approx(60 * 0.2 + 40 * 0.5)


def test_a_given_tokenizer_is_not_trained() -> None:
    recipe = load_recipe("cifar10")
    recipe = dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, pretrained="there"))
    times = run_times(recipe, COUNTS, Speeds(None, SPEEDS.prior, 0.001))
    assert TRAIN_TOKENIZER not in times and TRAIN_PRIOR in times
