"""An estimate counts the models that a recipe would build."""

from __future__ import annotations

import torch
from support.tiny_run import TINY

from pipeline.runs.estimate import estimate
from pipeline.runs.recipe import load_recipe
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel


def test_parameters_tokens_and_compression_are_those_of_the_models() -> None:
    recipe = load_recipe("digits", TINY)
    rows = dict(estimate(recipe, torch.device("cpu")).rows)
    tokenizer = TokenizerModel(recipe.tokenizer.model, recipe.data.preprocess)
    prior = PriorModel(recipe.prior.model, tokenizer.layout)
    for name, model in (("tokenizer parameters", tokenizer), ("prior parameters", prior)):
        assert rows[name].startswith(f"{sum(each.numel() for each in model.parameters()) / 1e6:.2f} million")
    assert rows["tokens per image"] == "16 (4 x 4)" and rows["codebook"] == "48"
    assert rows["compression, values"] == "4.0x"  # 64 grey values, 16 codes
    assert "plus activations" in rows["prior bytes"] and "average" in rows["prior bytes"]
    assert "6 steps" in rows["training the tokenizer, here"] and "6 steps" in rows["training the prior, here"]


def test_a_continuous_tokenizer_has_no_prior_to_estimate() -> None:
    model = {**TINY["tokenizer.model"], "quantizer": {"type": "kl", "width": 4}}
    rows = dict(estimate(load_recipe("digits", {**TINY, "tokenizer.model": model}), torch.device("cpu")).rows)
    assert rows["latent values per image"] == "64 (4 x 4 x 4)"
    assert not any(name.startswith("prior") for name in rows)
