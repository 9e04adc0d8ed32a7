"""An estimate says everything that a recipe costs, in a table and as numbers."""

from __future__ import annotations

import json

import pytest
from accelerate import Accelerator
from support.tiny_run import TINY

from foundation.errors import ConfigError
from pipeline.planning.estimate import ASSUMED_IMAGES, estimate
from pipeline.runs.recipe import load_recipe
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel


@pytest.fixture
def here() -> Accelerator:
    return Accelerator(cpu=True)


def test_models_memory_time_and_disk_are_those_of_the_recipe(here: Accelerator) -> None:
    recipe = load_recipe("digits", TINY)
    result = estimate(recipe, here)
    rows = dict(result.rows)
    tokenizer = TokenizerModel(recipe.tokenizer.model, recipe.data.preprocess)
    prior = PriorModel(recipe.prior.model, tokenizer.layout)
    for name, model in (("tokenizer parameters", tokenizer), ("prior parameters", prior)):
        assert rows[name].startswith(f"{sum(each.numel() for each in model.parameters()) / 1e6:.2f} million")
    assert rows["tokens per image"] == "16 (4 x 4)" and rows["codebook"] == "48"
    assert rows["compression, values"] == "4.0x"  # 64 grey values, 16 codes
    assert rows["images"] == "1,417 images and 380 for validation, counted"
    numbers = result.numbers
    assert set(numbers["memory"]) == {"tokenizer", "prior"}
    for memory in numbers["memory"].values():
        assert memory["needed"] > sum(memory["parts"].values()) > 0
    seconds = numbers["seconds"]
    for part in ("listing the images", "training the tokenizer", "encoding", "training the prior", "sampling"):
        assert seconds[part] > 0
    assert numbers["disk"]["prior"] == 4 * sum(each.numel() for each in prior.parameters())
    assert numbers["data"]["codes"] == (1417 + 380) * (16 * 2 + 100)
    assert json.loads(json.dumps(numbers)) == numbers
    assert "peak" in result.text() and "free here" in result.text()


def test_the_prior_of_a_continuous_tokenizer_is_estimated_too(here: Accelerator) -> None:
    model = {**TINY["tokenizer.model"], "quantizer": {"type": "kl", "width": 4}}
    result = estimate(load_recipe("digits", {**TINY, "tokenizer.model": model}), here)
    assert dict(result.rows)["latent values per image"] == "64 (4 x 4 x 4)"
    assert "prior parameters" in dict(result.rows) and "prior" in result.numbers["memory"]


def test_on_a_named_machine_times_are_computed_and_shrink_with_its_speed(here: Accelerator) -> None:
    recipe = load_recipe("digits", {**TINY, "data.source": {"type": "folder", "path": "no-such-folder"}})
    fast, slow = (estimate(recipe, here, on=name) for name in ("h100", "cpu-8"))
    assert any("computed for h100, not measured" in title for title in fast.groups)
    assert f"{ASSUMED_IMAGES:,} images assumed" in dict(fast.rows)["images"]
    assert dict(fast.rows)["peak"].endswith("80.00 GB free")
    assert "process with its libraries" not in dict(fast.rows)
    assert fast.numbers["memory"]["prior"]["parts"] != slow.numbers["memory"]["prior"]["parts"]  # other kernels
    given = estimate(recipe, here, on="h100", images=500)
    assert "500 images assumed (as --images says)" in dict(given.rows)["images"]
    assert given.numbers["images"] == {"train": 450, "validation": 50} or given.numbers["images"]["train"] == 400


def test_an_unknown_machine_is_refused_before_anything_is_measured(here: Accelerator) -> None:
    with pytest.raises(ConfigError, match="--on"):
        estimate(load_recipe("digits", TINY), here, on="h1000")
