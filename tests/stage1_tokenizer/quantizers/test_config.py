"""A suggestion names only settings that the quantizer has and that can be set so."""

import dataclasses
import re

import pytest

from foundation.config import from_dict, to_dict
from stage1_tokenizer.quantizers.config import (
    BSQConfig,
    FSQConfig,
    GumbelConfig,
    IBQConfig,
    KLConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    VQConfig,
)

BAD_START = {"learning": "gradient", "initial": "uniform", "revive_below": 0.0, "width": 64}
CONFIGS = {
    "vq": VQConfig(),
    "vq from a bad start": VQConfig(**BAD_START),
    "simvq": VQConfig(learning="gradient", projection=True, initial="normal", revive_below=0.0),
    "residual": ResidualConfig(codebook=VQConfig(**BAD_START)),
    "fsq": FSQConfig(),
    "fsq at random": FSQConfig(initial="random", evenness=0.1),
    "lfq": LFQConfig(),
    "bsq": BSQConfig(),
    "ibq": IBQConfig(),
    "gumbel": GumbelConfig(),
}
SETTINGS = {
    each.name
    for kind in (BSQConfig, FSQConfig, GumbelConfig, IBQConfig, KLConfig, LFQConfig, ResidualConfig, VQConfig)
    for each in dataclasses.fields(kind)
}


def suggested(config: QuantizerConfig) -> str:
    return " or ".join(config.suggestions())


def settings_of(config: QuantizerConfig) -> set[str]:
    own = {each.name for each in dataclasses.fields(config)}
    return own | ({f"codebook.{each.name}" for each in dataclasses.fields(VQConfig)} if "codebook" in own else set())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_names_settings_of_this_quantizer_alone(config: QuantizerConfig) -> None:
    named = {word for word in re.findall(r"[a-z_.]+", suggested(config)) if word.split(".")[-1] in SETTINGS}
    assert named and named <= settings_of(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_value_that_it_names_can_be_set_and_is_not_named_again(config: QuantizerConfig) -> None:
    values = to_dict(config)
    for name, value in re.findall(r"([a-z_.]+): ([a-z0-9.]+)", suggested(config)):
        inside = values["codebook"] if name.startswith("codebook.") else values
        inside[name.split(".")[-1]] = float(value) if value[0].isdigit() else value
    mended = from_dict(type(config), values)
    assert ":" not in suggested(mended)


def test_a_bad_start_is_told_of_all_that_would_mend_it() -> None:
    found = suggested(CONFIGS["vq from a bad start"])
    assert all(each in found for each in ("initial: latents", "revive_below: 0.05", "a smaller width"))
