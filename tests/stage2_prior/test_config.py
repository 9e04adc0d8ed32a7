"""One dial for the size of the transformer; configurations saved before a field existed mean what they meant."""

import pytest

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.config import digest, from_dict, to_dict
from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from stage2_prior.config import SIZES, PriorConfig

SAVED_BEFORE_SIZES = {
    "d_model": 96,
    "n_layers": 3,
    "n_heads": 4,
    "d_ff": None,
    "rope_base": 100.0,
    "qk_norm": True,
    "dropout": 0.25,
    "class_conditional": True,
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_stands_for_three_numbers(name: str) -> None:
    config = PriorConfig(size=name)
    assert config.shape == SIZES[name].shape == (config.n_layers, config.n_heads, config.d_model)
    assert from_dict(PriorConfig, to_dict(config)) == config


@pytest.mark.parametrize("name", ["tiny", "small", "gpt-b"])
def test_the_table_counts_parameters(name: str) -> None:
    import torch

    from stage2_prior.prior import PriorModel

    spec = CodeSpec(
        levels=(CodeLevel(height=16, width=16, codebook_size=16384),),
        stride=16,
        fingerprint="f",
        preprocess=Preprocess(height=256, width=256),
        class_names=tuple(map(str, range(1000))),
    )
    with torch.device("meta"):
        model = PriorModel(PriorConfig(size=name), spec)
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(SIZES[name].parameters, rel=0.01)


def test_without_a_size_the_defaults_are_those_they_were() -> None:
    assert PriorConfig().shape == (6, 4, 256)
    assert PriorConfig(d_model=512, n_heads=8).shape == (6, 8, 512)


@pytest.mark.parametrize("changes", [{"d_model": 256}, {"n_layers": 6}, {"n_heads": 4}])
def test_a_number_beside_a_size_that_says_otherwise_is_refused(changes: dict) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=rf"{name}(.|\n)*size gpt-b"):
        PriorConfig(size="gpt-b", **changes)
    assert PriorConfig(size="gpt-b", d_model=768, n_layers=12, n_heads=12) == PriorConfig(size="gpt-b")
    assert PriorConfig(size="gpt-b", **{name: None}) == PriorConfig(size="gpt-b")


def test_a_saved_prior_does_not_depend_on_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    saved, shape = to_dict(PriorConfig(size="tiny")), SIZES["tiny"].shape
    monkeypatch.setitem(SIZES, "tiny", SIZES["small"])
    assert PriorConfig.saved(saved, "prior").shape == shape
    monkeypatch.delitem(SIZES, "tiny")
    assert PriorConfig.saved(saved, "prior").shape == shape


def test_a_size_is_not_ignored_where_all_numbers_are_given() -> None:
    numbers = {"d_model": 96, "n_layers": 3, "n_heads": 4}
    with pytest.raises(ConfigError, match=r"d_model|n_layers|n_heads"):
        PriorConfig(size="gpt-b", **numbers)
    with pytest.raises(ConfigError, match="names no known size"):
        PriorConfig(size="tny", **numbers)


def test_an_unknown_size_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'gpt-xxl'"):
        from_dict(PriorConfig, {"size": "gpt-xxxl"}, "prior.model")


def test_configurations_saved_before_keep_their_meaning() -> None:
    config = from_dict(PriorConfig, SAVED_BEFORE_SIZES)
    assert config == PriorConfig(d_model=96, n_layers=3, n_heads=4, rope_base=100.0, dropout=0.25)
    assert (config.positions, config.target_aware, config.size) == ("rope", False, None)
    assert config.dropouts == (0.25, 0.25, 0.25)
    assert digest(from_dict(PriorConfig, to_dict(config))) == digest(config)


def test_each_dropout_can_be_set_alone() -> None:
    config = PriorConfig(dropout=0.1, token_dropout=0.0, attention_dropout=0.3)
    assert config.dropouts == (0.0, 0.1, 0.3)
    with pytest.raises(ConfigError, match="residual_dropout"):
        PriorConfig(residual_dropout=1.0)


def test_unknown_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions"):
        PriorConfig(positions="sinusoidal")  # type: ignore[arg-type]
