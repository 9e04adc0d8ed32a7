"""Precision auto of a recipe: resolved once, written into the run, kept by later starts."""

from pathlib import Path

import pytest
import torch
from support.tiny_run import TINY

from foundation.training.precision import VARIABLE, Convolution, Product, Speeds
from pipeline.runs import precision
from pipeline.runs.folder import RunFolder
from pipeline.runs.precision import settle_precision, tokenizer_operations
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.recipe_files import built_in_recipes
from pipeline.runs.stages import Run

CPU = torch.device("cpu")
FASTER = {True: Speeds(2.0, 1.0), False: Speeds(1.0, 2.5)}


def measured(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for module in (precision, precision.settled.__globals__):
        names = module if isinstance(module, dict) else vars(module)
        monkeypatch.setitem(names, "measure_precisions", lambda operations, device: FASTER[bf16])


def precisions(recipe: Recipe) -> list[str]:
    training = recipe.tokenizer.training
    return [training.precision, training.perceptual.precision, recipe.prior.training.precision]


@pytest.mark.parametrize("name", built_in_recipes())
def test_auto_is_the_default_of_every_recipe(name: str) -> None:
    assert precisions(load_recipe(name)) == ["auto"] * 3


def test_what_is_faster_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, bf16=True)
    recipe, said = settle_precision(load_recipe("cifar10-vqgan"), CPU)
    assert precisions(recipe) == ["bf16"] * 3
    assert said[0] == "tokenizer: bf16 (bf16 is 2.0 times as fast here)" and len(said) == 3
    measured(monkeypatch, bf16=False)
    recipe, said = settle_precision(load_recipe("digits"), CPU)
    assert precisions(recipe) == ["float32"] * 3 and len(said) == 2


def test_an_explicit_bf16_that_is_slower_is_kept_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, bf16=False)
    recipe, said = settle_precision(load_recipe("digits", {"prior.training.precision": "bf16"}), CPU)
    assert precisions(recipe)[2] == "bf16"
    expected = "prior: bf16, as the recipe says; bf16 is 2.5 times slower here, and --prior.training.precision auto"
    assert any(sentence.startswith(expected) for sentence in said)


def test_a_run_keeps_what_it_began_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe, folder = load_recipe("digits", TINY), RunFolder(tmp_path / "run")
    for bf16 in (True, False):  # the second time on another machine
        measured(monkeypatch, bf16=bf16)
        run = Run(recipe, folder)
        run.start()
        run.release()
        assert precisions(run.recipe)[0] == precisions(run.recipe)[2] == "bf16"
        assert precisions(folder.load_recipe()) == precisions(run.recipe)


def test_products_decide_for_a_tokenizer_of_transformers() -> None:
    """And not the one convolution that cuts its patches."""
    recipe = load_recipe("cifar10-20min")
    width = recipe.tokenizer.model.networks.width  # type: ignore[attr-defined]
    found = tokenizer_operations(recipe.tokenizer.model, (3, 32, 32))
    assert found[0] == Product(64, width, 3 * width) and all(isinstance(each, Product) for each in found)


def test_convolutions_that_take_most_of_the_time_are_found() -> None:
    recipe = load_recipe("cifar10")
    found = tokenizer_operations(recipe.tokenizer.model, (3, 32, 32))
    assert found[0] == Convolution(128, 128, 3, 8, 8)
    for name in ("cifar10-dvae", "cifar10-vqvae2", "imagenet-vq16"):
        recipe = load_recipe(name)
        size = (3, recipe.data.preprocess.height, recipe.data.preprocess.width)
        assert all(isinstance(each, Convolution) for each in tokenizer_operations(recipe.tokenizer.model, size))
