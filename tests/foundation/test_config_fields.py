from dataclasses import dataclass

import pytest

from foundation.config import digest, from_dict, to_dict
from foundation.config_fields import added_later, without_defaults
from foundation.images.config import Preprocess
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.quantizers.config import GumbelConfig, KLConfig, QuantizerConfig, ResidualConfig, VQConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    first: int = 1
    added: str = added_later("usual")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    added: bool = added_later(False)


def test_later_fields_count_only_away_from_their_defaults() -> None:
    assert without_defaults(Outer()) == {"inner": {"first": 1}}
    assert without_defaults(Outer(added=True)) == {"inner": {"first": 1}, "added": True}
    assert without_defaults({"x": Outer(inner=Inner(added="new"))}) == {"x": {"inner": {"first": 1, "added": "new"}}}
    assert from_dict(Outer, without_defaults(Outer())) == Outer() and to_dict(Outer())["added"] is False


# Computed by the code of 21 November 2026 (commit e046c5c), before there was any later field.
DIGESTS: list[tuple[QuantizerConfig, str]] = [
    (VQConfig(), "0fe018934cb306ea36d42000002f1ffb2acda834ac9bc78f17523800c78471b4"),
    (GumbelConfig(), "50d58767436359453b009867d9ca4acffcd9af3347af813c6c77b927c01f0283"),
    (KLConfig(), "1e4069fb69cb058c15d8944de28e30e73f03066f164bb14b78b4941ad7773bcf"),
    (ResidualConfig(), "fc93db2b295c3d9945d385ec9722c3b11ca7f77e24fd7230448d940464ab9dc0"),
]


@pytest.mark.parametrize(("quantizer", "before"), DIGESTS, ids=lambda each: getattr(each, "type_name", ""))
def test_settings_of_models_that_were_saved_before_have_the_same_digest(
    quantizer: QuantizerConfig, before: str
) -> None:
    config = TokenizerConfig(quantizer=quantizer)
    assert digest(without_defaults({"config": config, "preprocess": Preprocess()})) == before
