"""A prior that starts from another one's weights: what is kept, what is new, and what is said."""

import dataclasses
from typing import Any

import pytest
import torch
from support.random_prior import spec

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import ContractError
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel
from stage2_prior.start import start_prior

CONFIG = PriorConfig(d_model=16, n_layers=2, n_heads=2, positions="learned")


def prior(codes: CodeSpec, seed: int = 0, **changes: Any) -> PriorModel:
    torch.manual_seed(seed)
    model = PriorModel(dataclasses.replace(CONFIG, **changes), codes)
    torch.nn.init.normal_(model.head.weight)
    return model


def codes_of(names: str, height: int = 2, codebook_size: int = 11, fingerprint: str = "a" * 64) -> CodeSpec:
    known = spec((CodeLevel(height=height, width=3, codebook_size=codebook_size),), 1)
    return dataclasses.replace(known, class_names=tuple(names), fingerprint=fingerprint)


def same(one: PriorModel, other: PriorModel) -> set[str]:
    """Tensors that are equal, blocks as one."""
    theirs = other.state_dict()
    equal = {
        name: value.shape == theirs[name].shape and torch.equal(value, theirs[name])
        for name, value in one.state_dict().items()
    }
    assert len({kept for name, kept in equal.items() if name.startswith("blocks.")}) == 1
    return {name.split(".")[0] for name, kept in equal.items() if kept}


def test_the_same_codes_and_classes_keep_everything_silently() -> None:
    source, model = prior(codes_of("abc")), prior(codes_of("abc"), 1)
    assert start_prior(model, source) == []
    everything = {"blocks", "norm", "head", "code_embedding", "class_embedding", "place_embedding"}
    assert same(model, source) == everything


def test_rows_of_classes_are_kept_by_name() -> None:
    source, model = prior(codes_of("abc")), prior(codes_of("cxab"), 1)
    assert start_prior(model, source) == ["class table: 1 of 4 rows are new and start as the null class: x"]
    taken = source.class_embedding.weight[[2, 3, 0, 1, 3]]
    assert torch.equal(model.class_embedding.weight, taken)
    fewer = prior(codes_of("b"), 1)
    assert start_prior(fewer, source) == ["class table: 2 classes are gone: a, c"]
    assert start_prior(prior(codes_of("bac"), 1), source) == ["class table: rows are kept by name, in another order"]
    alone = prior(codes_of("abc"), 1, class_conditional=False)
    assert "class_conditional: False instead of True" in start_prior(alone, source)
    assert torch.equal(alone.class_embedding.weight, source.class_embedding.weight[[3]])


@pytest.mark.parametrize(
    ("other", "new", "said"),
    [
        ({"codebook_size": 13}, {"head", "code_embedding"}, "codebooks of [13] instead of [11]"),
        ({"fingerprint": "b" * 64}, {"head", "code_embedding"}, "those of another tokenizer"),
        ({"fingerprint": "no tokenizer"}, set(), "taken to be those of the same tokenizer"),
        ({"height": 4}, {"place_embedding"}, "grid: [(4, 3)] instead of [(2, 3)]"),
    ],
)
def test_other_codes_keep_the_blocks_and_name_what_is_new(other: dict[str, Any], new: set[str], said: str) -> None:
    source, model = prior(codes_of("abc")), prior(codes_of("abc", **other), 1)
    notes = " ".join(start_prior(model, source))
    everything = {"blocks", "norm", "head", "code_embedding", "class_embedding", "place_embedding"}
    assert said in notes and everything - same(model, source) == new
    assert all(f"{name}.weight" in notes for name in new)


def test_extra_codes_of_one_of_the_two_are_left_out() -> None:
    source, model = prior(codes_of("abc"), extra_codes=5), prior(codes_of("abc"), 1)
    assert start_prior(model, source) == ["extra_codes: 0 instead of 5"]
    assert torch.equal(model.head.weight, source.head.weight[:11])


@pytest.mark.parametrize(("name", "value"), [("d_model", 32), ("n_layers", 3), ("d_ff", 96), ("block", "gpt")])
def test_another_shape_is_refused_with_both_values(name: str, value: Any) -> None:
    with pytest.raises(ContractError) as caught:
        start_prior(prior(codes_of("abc"), **{name: value}), prior(codes_of("abc")))
    assert str(value) in str(caught.value)
