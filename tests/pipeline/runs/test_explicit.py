"""Fields that are given and cannot act are refused on the command line and named where a file has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from pipeline.runs.explicit import RULES
from pipeline.runs.recipe import load_recipe
from pipeline.runs.recipe_files import built_in_recipes, say
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.quantizers.config import FSQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

OFF: dict[str, dict[str, Any]] = {
    "data.validation_share": {"data.source": {"type": "folder", "path": "a", "validation_path": "b"}},
    "data.source.trust_classes": {"data.source": {"type": "folder", "path": "a", "labels": "b"}},
    "samples.sampling.guidance_scale": {"prior.model.class_conditional": False},
    "samples.sampling.schedule_power": {"samples.sampling.schedule": "cosine"},
    "samples.sampling.schedule_start": {"samples.sampling.schedule": "linear"},
    "samples.sampling.top_k": {"samples.sampling.temperature": 0},
    "samples.images_per_class": {"prior.model.class_conditional": False},
    "encode.corner_scale": {},
    "prior.training.views": {},
    "prior.model.rope_base": {"prior.model.positions": "learned"},
    "machine.tokens.packed_folder": {"machine.tokens.form": "memory"},
    "machine.tokens.memory_limit_mib": {"machine.tokens.form": "packed"},
    "tokenizer.training.perceptual.vgg_weights": {},
    "tokenizer.training.adversarial.start_step": {},
    "tokenizer.training.adversarial.lecam_decay": {"tokenizer.training.adversarial.weight": 0.1},
    "tokenizer.training.optim.decay_share": {},
    "prior.training.optim.min_factor": {"prior.training.optim.schedule": "constant"},
}
VALUES = {"prior.training.views": "one", "machine.tokens.packed_folder": "p", "prior.model.rope_base": 50}
VALUES |= {"data.source.trust_classes": True, "tokenizer.training.perceptual.vgg_weights": "random"}
SHARES = ("share", "decay", "start", "factor")


def value(name: str) -> Any:
    return VALUES.get(name, 0.3 if name.rpartition("_")[2] in SHARES else 3)


@pytest.mark.parametrize("name", OFF)
def test_a_given_field_that_cannot_act_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: has no effect: (.|\n)*found:(.|\n)*leave it out"):
        load_recipe("digits", {**OFF[name], name: value(name)})


def test_the_recipe_s_own_settings_and_defaults_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for name in built_in_recipes():
        load_recipe(name)
    load_recipe("digits", {"prior.model.class_conditional": False})
    load_recipe("digits", {"encode.corner_scale": 1.1, "tokenizer.training.adversarial.weight": 0})
    assert capsys.readouterr().err == ""
    assert len(RULES) > 15


def test_a_file_s_fields_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("extends: digits\nname: x\nencode: {corner_scale: 1.2}\n")
    say.cache_clear()
    load_recipe(str(tmp_path / "x.yaml"))
    assert capsys.readouterr().err == "encode.corner_scale has no effect: only encode.ten_crop cuts corners\n"


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    (tmp_path / "t").mkdir()
    config = TokenizerConfig(quantizer=FSQConfig(levels=(4, 4)))
    TokenizerModel(config, Preprocess(height=16, width=16, mode="L")).save(tmp_path / "t")
    return str(tmp_path / "t")


def test_settings_of_a_pretrained_tokenizer_are_its_own(
    pretrained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"tokenizer.pretrained": pretrained}
    recipe = load_recipe("digits", {**named, "data.preprocess.height": 16, "tokenizer.model.quantizer.type": "fsq"})
    assert recipe.data.preprocess.mode == "L" and recipe.tokenizer.model.quantizer.codebook_size == 16
    for name, given in (("data.preprocess.height", 64), ("tokenizer.model.quantizer.levels", [8, 8])):
        with pytest.raises(ConfigError, match=rf"{name.rpartition('.')[0]}(.|\n)*is not that of the tokenizer"):
            load_recipe("digits", {**named, name: given})
    say.cache_clear()
    load_recipe("digits", {**named, "tokenizer.training.fit.steps": 3})
    assert "tokenizer.training.fit.steps has no effect: tokenizer.pretrained is not" in capsys.readouterr().err
    own = f"extends: digits\nname: x\ntokenizer: {{pretrained: {pretrained}}}\ndata: {{preprocess: {{mode: RGB}}}}\n"
    (tmp_path / "x.yaml").write_text(own)
    with pytest.raises(ConfigError, match=r"data.preprocess.mode(.|\n)*found: +RGB(.|\n)*expected: +L"):
        load_recipe(str(tmp_path / "x.yaml"))
