"""Arguments of a system's own configuration, at any depth, checked against the tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.errors import ConfigError
from pipeline.interop.tokenizer_plan import UpstreamArguments, read_arguments


def test_the_value_nearest_the_root_counts() -> None:
    arguments = UpstreamArguments({"model": {"ch": 4, "inner": {"ch": 8}}, "lossconfig": {"disc": 1}}, "c.yaml")
    assert arguments.find("ch") == 4
    assert arguments.find("disc") is None  # of the discriminator, not of the model
    with pytest.raises(ConfigError, match=r"c\.yaml: ch: has several values(.|\n)*\[4, 8\]"):
        UpstreamArguments({"a": {"ch": 4}, "b": {"ch": 8}}, "c.yaml").find("ch")


def test_a_published_model_s_arguments_fill_gaps_only() -> None:
    arguments = UpstreamArguments({"a": 1}, defaults={"a": 2, "b": 3})
    assert (arguments.find("a"), arguments.find("b"), arguments.find("c", 4)) == (1, 3, 4)


def test_an_unknown_argument_asks_for_a_configuration() -> None:
    with pytest.raises(ConfigError, match=r"n_head: is needed(.|\n)*no --config(.|\n)*--config FILE with n_head"):
        UpstreamArguments().require("n_head", "a GPT")
    with pytest.raises(ConfigError, match=r"c\.json without it"):
        UpstreamArguments({"a": 1}, "c.json").require("n_head", "a GPT")


def test_a_configuration_of_another_model_is_refused() -> None:
    arguments = UpstreamArguments({"ch": 64, "ch_mult": (1, 2)}, "c.yaml", defaults={"z": 9})
    arguments.require_agreement({"ch": 64, "ch_mult": [1, 2], "z": 4})  # a default never contradicts
    with pytest.raises(ConfigError, match=r"c\.yaml: ch: contradicts the tensors(.|\n)*64(.|\n)*32"):
        arguments.require_agreement({"ch": 32})
    with pytest.raises(ConfigError, match=r"no argument of this format(.|\n)*width"):
        arguments.require_agreement({"width": 3})
    UpstreamArguments().require_agreement({"width": 3})


@pytest.mark.parametrize(("name", "text"), [("c.json", '{"lr": 1e-05}'), ("c.yaml", "lr: 1.0e-05")])
def test_json_and_yaml_give_the_same_numbers(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_arguments(tmp_path / name).find("lr") == 1e-05
    assert read_arguments(None).values == {}
