"""Fit a recipe to a wall-clock budget on this machine: sizes it leaves open, precision, batches, steps, cadence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundation.codes.spec import CodeSpec
from foundation.config_fields import replaced
from foundation.errors import ConfigError
from pipeline.planning.budget_fields import scaled
from pipeline.planning.measure import PriorSpeed, TokenizerSpeed, measure_prior, measure_tokenizer
from pipeline.planning.sizes import (
    MOST_PASSES,
    batch_for,
    choose_prior,
    choose_tokenizer,
    prior_cost,
    prior_learning_rate,
    tokenizer_flops,
)
from pipeline.planning.times import (
    ENCODE,
    EVALUATE_PRIOR,
    EVALUATE_TOKENIZER,
    FIRST_STAGE,
    TRAIN_PRIOR,
    TRAIN_TOKENIZER,
    Counts,
    Speeds,
    evaluation_seconds,
    n_views,
    reading_of_a_step,
    run_times,
)
from pipeline.runs.duration import Budget, duration
from pipeline.runs.precision import settle_precision
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.tokenizer import TokenizerModel

if TYPE_CHECKING:
    from accelerate import Accelerator

_AIM = 0.96
"""share of the budget that is planned: what is left is for what no measurement foresees"""
_TOKENIZER_SHARE = 0.45
"""of the time for training; see docs/RESULTS.md"""
_EVALUATIONS, _MOST_EVALUATIONS = 0.05, 9
"""share of a stage's time for evaluations, and most of them"""
_LAST_PARTS = 12.0
"""seconds of sampling and report, about, when the prior's size is chosen"""
_CHECKPOINT_SECONDS = 60
_FEWEST_STEPS = 60
"""of a training that can be called one"""
_MOST_TOKENIZER_PASSES = 400
_ENCODE_SHARE = 0.12
"""of the budget: where encoding mirror images takes more, they are left out"""
_MIRRORED_FROM = 1.5
"""passes over the images from which on mirror images are encoded too: before, the prior would hardly see them"""
_PROBED, _PROBED_TOKENIZER = 5e12, 1.2e13
"""FLOPs of trainings whose sizes are timed first: minutes on a laptop"""
_PROBED_SIDE, _PROBED_BATCH = 64, 128
"""pixels and images of a step of the tokenizer that is timed"""
_AVERAGED = 0.08
"""of the steps: horizon of the average of the weights"""


@dataclass(frozen=True)
class Fitted:
    """A recipe that fits a budget.

    Attributes:
        recipe: with all choices in it.
        times: expected seconds of each part, from here on.
        speeds: measured.
        counts: of the images.
        spent: seconds of the budget that were gone.
        notes: sentences on what limited the choices.
    """

    recipe: Recipe
    times: dict[str, float]
    speeds: Speeds
    counts: Counts
    spent: float
    notes: tuple[str, ...] = ()


@dataclass
class Fitting:
    """What is known when a recipe is fitted.

    Attributes:
        recipe: open.
        budget: for the whole run.
        given: dotted names of fields that the user has set; they are kept.
        counts: of the images.
        side: of the images, the shorter one in pixels, as they usually are; None if not known.
        read: seconds to read an image.
        spent: gives the seconds of the budget that are gone.
        accelerator: devices and processes.
    """

    recipe: Recipe
    budget: Budget
    given: Collection[str]
    counts: Counts
    side: int | None
    read: float
    spent: Callable[[], float]
    accelerator: Accelerator

    def fit(self) -> Fitted:
        """Choose everything that is open.

        Raises:
            ConfigError: the budget is too short; says how long it must be.
        """
        recipe = self._sized()
        recipe, _ = settle_precision(recipe, self.accelerator.device)
        trains = recipe.codes is None and recipe.tokenizer.pretrained is None
        tokenizer = measure_tokenizer(recipe, self.accelerator) if recipe.codes is None else None
        prior = measure_prior(recipe, spec_of(recipe, self.counts.classes), self.accelerator)
        speeds = Speeds(tokenizer, prior, self.read)
        recipe = self._without_useless_views(recipe, speeds)
        first, second, notes = self._shares(recipe, speeds, trains=trains)
        if trains and tokenizer is not None:
            step = tokenizer.step + reading_of_a_step(recipe, self.counts, self.read)
            recipe = self._with_steps(recipe, "tokenizer", first, step, (tokenizer.score, tokenizer.score))
        recipe = self._with_steps(recipe, "prior", second, prior.step, _scoring(prior, tokenizer))
        return Fitted(recipe, run_times(recipe, self.counts, speeds), speeds, self.counts, self.spent(), notes)

    def fit_prior(self, spec: CodeSpec, tokenizer: TokenizerSpeed | None, done: Collection[str]) -> Fitted:
        """Choose the prior's steps, and its open sizes, when the first stage is over: its real time is known then.

        Args:
            spec: of the run's codes.
            tokenizer: speed that was measured.
            done: parts of ``run_times`` that are over.
        """
        recipe = self.recipe
        if "prior" in recipe.open:
            recipe = self._sized_prior(recipe, spec, self.budget.total * _AIM - self.spent() - _LAST_PARTS)
        prior = measure_prior(recipe, spec, self.accelerator)
        speeds = Speeds(tokenizer, prior, self.read)
        times = run_times(recipe, self.counts, speeds)
        rest = sum(value for name, value in times.items() if name not in (*done, TRAIN_PRIOR, EVALUATE_PRIOR))
        left = self.budget.total * _AIM - self.spent() - rest
        left, notes = self._within_passes(recipe, left, prior)
        recipe = self._with_steps(recipe, "prior", left, prior.step, _scoring(prior, tokenizer))
        times = {name: value for name, value in run_times(recipe, self.counts, speeds).items() if name not in done}
        return Fitted(recipe, times, speeds, self.counts, self.spent(), notes)

    def _sized(self) -> Recipe:
        """The recipe with the sizes that it leaves open."""
        recipe, seconds = self.recipe, self.budget.total * _AIM - self.spent()
        trains = recipe.tokenizer.pretrained is None
        if trains and "tokenizer" in recipe.open and self._is_open("tokenizer.model"):
            preprocess = recipe.data.preprocess
            open_size = "resolution" in recipe.open and self._is_open("data.preprocess") and not preprocess.shapes
            fixed = not open_size
            side = min(preprocess.height, preprocess.width) if fixed else self.side
            rate = self._tokenizer_rate(recipe)
            share = self.budget.first_stage or _TOKENIZER_SHARE * seconds
            n_encoded = self.counts.train * n_views(recipe) + self.counts.validation
            most = 2 * _ENCODE_SHARE * self.budget.total * rate / n_encoded  # the encoder is about half
            sizes = choose_tokenizer(
                rate * share, self.counts, preprocess.n_channels, side, fixed=fixed, most_flops=most
            )
            values: dict[str, Any] = {"tokenizer.model": sizes.model}
            if "tokenizer.training.fit.batch_size" not in self.given:
                values["tokenizer.training.fit.batch_size"] = batch_for("tokenizer", rate * share / (3 * sizes.flops))
            if not fixed:
                values |= {"data.preprocess.height": sizes.side, "data.preprocess.width": sizes.side}
            recipe = replaced(recipe, values)
        if "prior" in recipe.open:
            recipe = self._sized_prior(recipe, spec_of(recipe, self.counts.classes), (1 - _TOKENIZER_SHARE) * seconds)
        return recipe

    def _sized_prior(self, recipe: Recipe, spec: CodeSpec, seconds: float) -> Recipe:
        """The recipe with a prior that fits a number of seconds of training."""
        if not self._is_open("prior.model"):
            return recipe
        budget = self._prior_rate(recipe, spec) * seconds
        model = choose_prior(budget, self.counts, n_views(recipe), spec, recipe.prior.model)
        seen = min(budget / (3 * prior_cost(model, spec)[0]), MOST_PASSES * self.counts.train * n_views(recipe))
        values = {
            "prior.model": model,
            "prior.training.fit.batch_size": batch_for("prior", seen),
            "prior.training.optim.learning_rate": prior_learning_rate(model.shape.d_model),
        }
        return replaced(recipe, {name: value for name, value in values.items() if name not in self.given})

    def _is_open(self, section: str) -> bool:
        """Whether the user has set nothing in a section."""
        return not any(name == section or name.startswith(f"{section}.") for name in self.given)

    def _tokenizer_rate(self, recipe: Recipe) -> float:
        """FLOPs a second of a tokenizer's training, by a network that is not wide."""
        preprocess = recipe.data.preprocess
        small = choose_tokenizer(_PROBED_TOKENIZER, self.counts, preprocess.n_channels, _PROBED_SIDE, fixed=True)
        values = {
            "tokenizer.model": small.model,
            "tokenizer.training.fit.batch_size": _PROBED_BATCH,
            "data.preprocess.height": small.side,
            "data.preprocess.width": small.side,
            "data.preprocess.shapes": (),
        }
        speed = measure_tokenizer(replaced(recipe, values), self.accelerator)
        one = tokenizer_flops(small.model, preprocess.n_channels, small.side)
        return 3 * one * _PROBED_BATCH / speed.step

    def _prior_rate(self, recipe: Recipe, spec: CodeSpec) -> float:
        """FLOPs a second of a prior's training, by a small one."""
        small = choose_prior(_PROBED, self.counts, 1, spec, recipe.prior.model)
        speed = measure_prior(replaced(recipe, {"prior.model": small}), spec, self.accelerator)
        return 3 * prior_cost(small, spec)[0] * recipe.prior.training.fit.batch_size / speed.step

    def _without_useless_views(self, recipe: Recipe, speeds: Speeds) -> Recipe:
        """Leave out mirror images where encoding them takes too much of the budget, or the prior hardly sees them."""
        if not recipe.encode.flip or "encode.flip" in self.given:
            return recipe
        encoding, total = run_times(recipe, self.counts, speeds).get(ENCODE, 0.0), self.budget.total
        first = _TOKENIZER_SHARE * total if self.budget.first_stage is None else self.budget.first_stage
        seconds = _AIM * (total - first) - encoding
        seen = seconds / speeds.prior.step * recipe.prior.training.fit.batch_size
        if encoding > _ENCODE_SHARE * total or seen < _MIRRORED_FROM * self.counts.train:
            return replaced(recipe, {"encode.flip": False})
        return recipe

    def _shares(self, recipe: Recipe, speeds: Speeds, *, trains: bool) -> tuple[float, float, tuple[str, ...]]:
        """Seconds for the training of each stage, evaluations included.

        Raises:
            ConfigError: too short a budget.
        """
        trained = (TRAIN_TOKENIZER, EVALUATE_TOKENIZER, TRAIN_PRIOR, EVALUATE_PRIOR)
        rest = {name: value for name, value in run_times(recipe, self.counts, speeds).items() if name not in trained}
        total = self.budget.total * _AIM - self.spent()
        left = total - sum(rest.values())
        first = _TOKENIZER_SHARE * left if trains else 0.0
        if self.budget.first_stage is not None and trains:
            before = sum(value for name, value in rest.items() if name in FIRST_STAGE)
            first = self.budget.first_stage * _AIM - self.spent() - before
        self._require_time(min(first if trains else left, left - first), rest, speeds)
        if trains and speeds.tokenizer is not None and "tokenizer.training.fit.steps" in self.given:
            first = min(left, recipe.tokenizer.training.fit.steps * speeds.tokenizer.step / (1 - _EVALUATIONS))
        second, notes = self._within_passes(recipe, left - first, speeds.prior)
        if trains and self.budget.first_stage is None:
            first = left - second
        if trains and speeds.tokenizer is not None:
            most = self._most_steps(recipe, "tokenizer") * speeds.tokenizer.step / (1 - _EVALUATIONS)
            if first > most and "tokenizer.training.fit.steps" not in self.given:
                note = (
                    f"the tokenizer stops after {_MOST_TOKENIZER_PASSES} passes over its images, before the budget ends"
                )
                first, notes = most, (*notes, note)
        return first, second, notes

    def _within_passes(self, recipe: Recipe, seconds: float, prior: PriorSpeed) -> tuple[float, tuple[str, ...]]:
        """At most the time of ``MOST_PASSES`` passes over the codes."""
        if "prior.training.fit.steps" in self.given:
            return min(seconds, recipe.prior.training.fit.steps * prior.step / (1 - _EVALUATIONS)), ()
        most = self._most_steps(recipe, "prior") * prior.step / (1 - _EVALUATIONS)
        if seconds <= most:
            return seconds, ()
        note = (
            f"the prior stops after {MOST_PASSES} passes over its {self.counts.train:,} images: it would learn them by"
            " heart; more images would help"
        )
        return most, (note,)

    def _most_steps(self, recipe: Recipe, stage: str) -> int:
        """Steps of the most passes over the pictures that a stage may make."""
        most, views = (MOST_PASSES, n_views(recipe)) if stage == "prior" else (_MOST_TOKENIZER_PASSES, 1)
        return int(most * self.counts.train * views / getattr(recipe, stage).training.fit.batch_size)

    def _require_time(self, least: float, rest: Mapping[str, float], speeds: Speeds) -> None:
        slowest = max(each.step for each in (speeds.tokenizer, speeds.prior) if each is not None)
        needed = _FEWEST_STEPS * slowest
        if least >= needed:
            return
        shortest = (self.spent() + sum(rest.values()) + 2 * needed / min(_TOKENIZER_SHARE, 1 - _TOKENIZER_SHARE)) / _AIM
        parts = ", ".join(f"{name} {duration(value)}" for name, value in rest.items() if value > 0.05 * shortest)
        raise ConfigError(
            "is too short on this machine for this recipe and these images",
            field="--budget",
            found=duration(self.budget.total),
            expected=f"{duration(shortest)} or more; besides training: {parts}",
            fix="give more time, fewer images, a smaller model, or the recipe folder, which takes sizes that fit",
        )

    def _with_steps(
        self, recipe: Recipe, stage: str, seconds: float, step: float, scoring: tuple[float, float]
    ) -> Recipe:
        """The recipe with steps and cadence of a stage for so much time; ``scoring``: see ``evaluation_seconds``."""
        training = getattr(recipe, stage).training
        evaluation = max(evaluation_seconds(training.fit, self.counts, *scoring), 1e-9)
        n = int(max(2, min(_MOST_EVALUATIONS, _EVALUATIONS * seconds / evaluation)))
        fitting = int((seconds - n * evaluation) / step)
        steps = max(_FEWEST_STEPS, min(fitting, self._most_steps(recipe, stage)))
        if f"{stage}.training.fit.steps" in self.given:
            steps = training.fit.steps
        values: dict[str, Any] = {
            "fit.steps": steps,
            "fit.evaluate_every": -(-steps // (n - 1)),
            "fit.checkpoint_every": max(1, min(steps, int(_CHECKPOINT_SECONDS / step))),
            "fit.log_every": max(1, min(50, steps // 100)),
        }
        if training.average_decay > 0:
            values["average_decay"] = round(1 - 1 / max(10.0, _AVERAGED * steps), 5)
        values |= dict(scaled(training, steps, training.fit.steps))
        named = {f"{stage}.training.{name}": value for name, value in values.items()}
        if stage == "tokenizer":
            quantizer = recipe.tokenizer.model.quantizer
            inside = dict(scaled(quantizer, steps, training.fit.steps))
            named |= {f"tokenizer.model.quantizer.{name}": value for name, value in inside.items()}
        return replaced(recipe, {name: value for name, value in named.items() if name not in self.given})


def spec_of(recipe: Recipe, n_classes: int) -> CodeSpec:
    """What the recipe's codes will be, but for names of classes and the fingerprint."""
    layout = TokenizerModel(recipe.tokenizer.model, recipe.data.preprocess).layout
    return dataclasses.replace(layout, class_names=tuple(str(i) for i in range(n_classes)))


def _scoring(prior: PriorSpeed, tokenizer: TokenizerSpeed | None) -> tuple[float, float]:
    """Seconds to score the codes of an image, and to sample an image for a preview."""
    return prior.score, prior.sample + (0.0 if tokenizer is None else tokenizer.decode)
