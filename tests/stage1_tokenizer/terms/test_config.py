"""Settings of terms: a list in a recipe, checked, and no part of what a run is where it is empty."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.config import from_dict, to_dict
from foundation.config_fields import without_defaults
from foundation.errors import ConfigError
from pipeline.runs.recipe import load_recipe
from stage1_tokenizer.config import TokenizerTraining
from stage1_tokenizer.terms.config import AlignmentConfig, EquivarianceConfig, Lite0Config


def test_an_empty_list_is_no_part_of_a_run_and_a_list_survives_being_written() -> None:
    assert "terms" not in without_defaults(TokenizerTraining())
    training = TokenizerTraining(terms=(Lite0Config(), AlignmentConfig(of="both"), EquivarianceConfig()))
    assert from_dict(TokenizerTraining, to_dict(training)) == training


@pytest.mark.parametrize("text", ["[{type: lite0, weight: 0.5}, {type: equivariance}]", "{type: lite0, weight: 0.5}"])
def test_a_list_can_be_typed(text: str) -> None:
    from pipeline.commands.fields import read_fields
    from pipeline.commands.runs import train_tokenizer

    values = read_fields(["--tokenizer.training.terms", text], train_tokenizer)
    terms = load_recipe("digits", values).tokenizer.training.terms
    assert terms[0] == Lite0Config(weight=0.5) and len(terms) == text.count("type")


@pytest.mark.parametrize(
    ("term", "named"),
    [
        ({"type": "lite0", "weight": 0}, "weight"),
        ({"type": "lite0", "stages": []}, "stages"),
        ({"type": "lite0", "stages": [3, 2]}, "stages"),
        ({"type": "lite0", "side": 16}, "side"),
        ({"type": "alignment", "stages": [10]}, "stages"),
        ({"type": "alignment", "hidden": -1}, "hidden"),
        ({"type": "alignment", "margin": 1.0}, "margin"),
        ({"type": "equivariance", "scales": [3]}, "scales"),
        ({"type": "equivariance", "scales": [1], "flips": False, "rotations": False}, "scales"),
        ({"type": "texture", "window": 5}, "window"),
        ({"type": "texture", "filter_size": 1}, "filter_size"),
        ({"type": "texture", "crop": 7}, "crop"),
        ({"type": "lite1"}, "did you mean 'lite0'"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(term: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"terms\[0\](.|\n)*{named}"):
        from_dict(TokenizerTraining, {"terms": [term]}, "tokenizer.training")


def test_measuring_needs_no_file() -> None:
    training = TokenizerTraining(terms=(Lite0Config(), AlignmentConfig(), EquivarianceConfig())).without_files()
    assert [getattr(each, "weights", None) for each in training.terms] == ["random", "random", None]
    assert training.perceptual.vgg_weights == "random"
