"""A recipe fitted to a budget: every choice in the recipe, no given field changed, times that add up."""

import dataclasses
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from foundation.config_fields import replaced
from foundation.errors import ConfigError
from pipeline.planning import budget as budget_module
from pipeline.planning.budget import Fitted, Fitting
from pipeline.planning.budget_fields import adopt_fit, fittable, kept_fields
from pipeline.planning.measure import PriorSpeed, TokenizerSpeed
from pipeline.planning.times import Counts
from pipeline.runs.duration import Budget
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.recipe_files import own_fields

COUNTS = Counts(train=3600, validation=400, classes=10)
FLOPS_A_SECOND = 5e10


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a known speed: what is measured here is not what is chosen from it."""

    def tokenizer(recipe: Recipe, accelerator: Accelerator) -> TokenizerSpeed:
        preprocess = recipe.data.preprocess
        flops = budget_module.tokenizer_flops(recipe.tokenizer.model, preprocess.n_channels, preprocess.height)
        one = flops / FLOPS_A_SECOND
        step = 3 * one * recipe.tokenizer.training.fit.batch_size
        return TokenizerSpeed(step, step, one / 2, one / 2, one)

    def prior(recipe: Recipe, spec: Any, accelerator: Accelerator) -> PriorSpeed:
        one = budget_module.prior_cost(recipe.prior.model, spec)[0] / FLOPS_A_SECOND
        return PriorSpeed(3 * one * recipe.prior.training.fit.batch_size, one, 4 * one)

    monkeypatch.setattr(budget_module, "measure_tokenizer", tokenizer)
    monkeypatch.setattr(budget_module, "measure_prior", prior)


def fit(recipe: Recipe, text: str, *, given: tuple[str, ...] = (), counts: Counts = COUNTS) -> Fitted:
    accelerator, parsed = Accelerator(cpu=True), Budget.parse(text)
    return Fitting(recipe, parsed, given, counts, 72, 1e-3, lambda: 5.0, accelerator).fit()


@pytest.mark.parametrize("text", ["5m", "10m", "1h", "1d"])
def test_the_folder_recipe_fills_its_budget(text: str) -> None:
    fitted = fit(load_recipe("folder"), text)
    total = fitted.spent + sum(fitted.times.values())
    used = total / Budget.parse(text).total
    assert used < 1.0 and (used > 0.9 or fitted.notes), fitted.notes


def test_more_time_gives_larger_models_and_more_steps() -> None:
    short, long = (fit(load_recipe("folder"), text).recipe for text in ("5m", "2h"))
    assert short.data.preprocess.height <= long.data.preprocess.height <= 72
    assert short.prior.model.shape.d_model < long.prior.model.shape.d_model
    seen = [each.tokenizer.training.fit.steps * each.tokenizer.training.fit.batch_size for each in (short, long)]
    assert seen[0] < seen[1]


def test_a_recipe_that_leaves_nothing_open_keeps_its_sizes() -> None:
    recipe = load_recipe("cifar10")
    fitted = fit(recipe, "30m").recipe
    assert fitted.tokenizer.model == recipe.tokenizer.model and fitted.prior.model == recipe.prior.model
    assert fitted.tokenizer.training.fit.steps != recipe.tokenizer.training.fit.steps
    assert fitted.tokenizer.training.precision != "auto"


def test_given_fields_are_kept() -> None:
    overrides = {"data.preprocess.height": 48, "data.preprocess.width": 48, "prior.training.fit.steps": 77}
    recipe = load_recipe("folder", overrides)
    fitted = fit(recipe, "20m", given=tuple(overrides)).recipe
    assert fitted.data.preprocess == recipe.data.preprocess and fitted.prior.training.fit.steps == 77


def test_a_section_that_is_given_whole_is_kept() -> None:
    overrides = {"tokenizer.training.fit": {"steps": 77, "batch_size": 8, "evaluate_every": 20, "checkpoint_every": 20}}
    recipe = load_recipe("folder", overrides)
    fitted = fit(recipe, "20m", given=tuple(kept_fields(recipe, overrides, ()))).recipe
    assert fitted.tokenizer.training.fit == recipe.tokenizer.training.fit
    assert fitted.prior.training.fit.steps != recipe.prior.training.fit.steps


def test_steps_of_ones_own_file_are_replaced_and_sizes_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: folder\nname: mine\nprior: {model: {d_model: 64}, training: {fit: {steps: 9}}}\n")
    recipe = load_recipe(str(path))
    kept = kept_fields(recipe, {"seed"}, own_fields(str(path)))
    assert kept == {"seed", "name", "prior.model.d_model"}
    fitted = fit(recipe, "20m", given=tuple(kept)).recipe
    assert fitted.prior.model == recipe.prior.model and fitted.prior.training.fit.steps > 9


def test_time_that_given_steps_leave_goes_to_the_other_stage() -> None:
    recipe = load_recipe("folder")
    given = "prior.training.fit.steps"
    few = fit(load_recipe("folder", {given: 100}), "20m", given=(given,))
    steps = [each.tokenizer.training.fit.steps for each in (fit(recipe, "20m").recipe, few.recipe)]
    assert steps[1] > 1.5 * steps[0] and few.recipe.prior.training.fit.steps == 100 and not few.notes


def test_a_pair_of_times_is_for_the_two_stages() -> None:
    recipe = load_recipe("folder")
    early, late = (fit(recipe, text).times for text in ("5m+25m", "25m+5m"))
    first = ("start", "listing the images", "decoding the images", "training the tokenizer", "evaluating the tokenizer")
    for times, expected in ((early, 300), (late, 1500)):
        assert sum(times[name] for name in first) + 5 == pytest.approx(0.96 * expected, rel=0.05)


def test_steps_of_schedules_keep_their_share() -> None:
    recipe = load_recipe("cifar10-vqgan")
    fitted = fit(recipe, "40m").recipe
    before, after = (each.tokenizer.training for each in (recipe, fitted))
    assert after.adversarial.start_step / after.fit.steps == pytest.approx(
        before.adversarial.start_step / before.fit.steps, rel=0.02
    )
    assert after.optim.warmup_steps / after.fit.steps == pytest.approx(
        before.optim.warmup_steps / before.fit.steps, rel=0.02
    )


def test_a_warm_up_does_not_vanish_in_a_short_training() -> None:
    recipe = load_recipe("folder")
    fitted = fit(recipe, "3m").recipe.prior.training
    least = min(recipe.prior.training.optim.warmup_steps, fitted.fit.steps // 20)
    assert fitted.optim.warmup_steps >= least > 0


def test_few_pictures_are_not_learned_by_heart() -> None:
    fitted = fit(load_recipe("folder"), "1d", counts=Counts(200, 20, 2))
    stage = fitted.recipe.prior.training.fit
    assert stage.steps * stage.batch_size <= 41 * 2 * 200
    assert any("by heart" in note for note in fitted.notes)


def test_too_short_a_budget_says_how_long_it_must_be() -> None:
    huge = Counts(train=2_000_000, validation=100_000, classes=10)
    with pytest.raises(ConfigError) as refused:
        fit(load_recipe("cifar10"), "5m", counts=huge)
    assert "--budget" in str(refused.value) and "or more" in str(refused.value)


def test_slow_mirror_images_are_left_out() -> None:
    many = dataclasses.replace(COUNTS, train=150_000)
    assert fit(load_recipe("cifar10"), "1h").recipe.encode.flip
    assert not fit(load_recipe("cifar10"), "1h", counts=many).recipe.encode.flip
    assert fit(load_recipe("cifar10"), "1h", counts=many, given=("encode.flip",)).recipe.encode.flip


def test_mirror_images_that_the_prior_would_hardly_see_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("cifar10", {"tokenizer.model.networks.base_width": 32})
    counts = dataclasses.replace(COUNTS, train=20_000)
    short = fit(recipe, "4m+4m", counts=counts)
    training = short.recipe.prior.training.fit
    assert not short.recipe.encode.flip and training.steps * training.batch_size < 2 * counts.train
    assert fit(recipe, "4m+2h", counts=counts).recipe.encode.flip
    assert fit(recipe, "4m+4m", counts=counts, given=("encode.flip",)).recipe.encode.flip
    monkeypatch.setattr(budget_module, "_MIRRORED_FROM", 0.0)
    assert fit(recipe, "4m+4m", counts=counts).recipe.encode.flip, "and not because they are slow"


@pytest.mark.parametrize("name", ["folder", "cifar10-vqgan", "cifar10-dvae", "digits", "cifar10-vae"])
def test_a_run_gives_all_its_choices_back(name: str) -> None:
    recipe = load_recipe(name, {"budget": "30m"})
    fitted = fit(recipe, "30m").recipe
    assert adopt_fit(recipe, fitted, ()) == fitted
    other = replaced(recipe, {"tokenizer.training.optim.learning_rate": 0.5})
    assert attrgetter("tokenizer.training.optim.learning_rate")(adopt_fit(other, fitted, ())) == 0.5
    assert set(fittable(recipe)) >= {"prior.training.fit.steps", "tokenizer.training.precision"}
