"""Parts that do not belong together are refused, and the message names the field in which they differ."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.token_folders import token_spec, write_tokens

from foundation.codes.shards import read_shard, shard_path
from foundation.codes.spec import CodeLevel, CodeSpec, require_same_codes
from foundation.config import from_dict, to_dict
from foundation.config_fields import merge
from foundation.errors import ContractError, TesseraError
from stage1_tokenizer.tokenizer import TokenizerModel

MUTATIONS: dict[str, Any] = {
    "levels[0].height": 3,
    "levels[0].width": 2,
    "levels[0].codebook_size": 1001,
    "levels[0].depth": 2,
    "levels": [
        {"height": 1, "width": 1, "codebook_size": 9, "depth": 1},
        {"height": 2, "width": 3, "codebook_size": 1000, "depth": 1},
    ],
    "stride": 8,
    "preprocess.height": 16,
    "preprocess.width": 24,
    "preprocess.mode": "L",
    "preprocess.resize": "bilinear",
    "preprocess.resize ": "lanczos",
    "preprocess.resize  ": "nearest",
    "preprocess.background[0]": 0,
    "preprocess.background[1]": 254,
    "preprocess.background[2]": 128,
    "fingerprint": "f" * 63 + "e",
    "fingerprint ": "0" * 64,
    "class_names[0]": "dog ",
    "class_names[1]": "cat",
    "class_names": ["cat", "dog", "cow"],
}
"""One changed field each; blanks only tell apart two changes of one field."""


def mutated(spec: CodeSpec, dotted: str, value: Any) -> CodeSpec:
    values = json.loads(json.dumps(to_dict(spec)))
    place, names = values, dotted.strip().replace("[", ".[").split(".")
    for name in names[:-1]:
        place = place[int(name[1:-1])] if name.startswith("[") else place[name]
    last = names[-1]
    place[int(last[1:-1]) if last.startswith("[") else last] = value
    return from_dict(CodeSpec, values)


@pytest.mark.parametrize("dotted", MUTATIONS)
def test_a_changed_field_is_refused_by_its_name(dotted: str, tmp_path: Path, keep: Callable) -> None:
    """Between any two parts, and between a token dataset and what its shards say of themselves."""
    spec = token_spec()
    other = mutated(spec, dotted, MUTATIONS[dotted])
    assert other.contract != spec.contract
    name = dotted.strip()
    with pytest.raises(ContractError) as caught:
        require_same_codes(spec, other, owner="the prior", other="the tokenizer")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert [line for line in lines if line.startswith(f"{name}:")], lines
    folder = write_tokens(tmp_path, (3,))
    with pytest.raises(ContractError) as caught:
        read_shard(shard_path(folder, "train", 0), other)
    assert f"{name}:" in str(caught.value)
    keep("the contract", **{"changed fields": 1, "refused by name": 1})


def test_there_are_twenty_of_them() -> None:
    assert len(MUTATIONS) == 20
    assert len({mutated(token_spec(), name, value).contract for name, value in MUTATIONS.items()}) == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": {"resize": "bilinear"}},
        {"preprocess": {"background": [0, 0, 0]}},
        {"tokenizer": {"networks": {"dropout": 0.0}}},
    ],
    ids=str,
)
def test_settings_of_a_tokenizer_that_were_edited_are_refused(changes: dict, frozen: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(frozen, tmp_path / "edited"))
    settings = json.loads((frozen / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(merge(settings, changes)))
    with pytest.raises(TesseraError, match="settings were changed after saving"):
        TokenizerModel.load(folder)


def test_a_specification_with_no_classes_fits_one_with_some() -> None:
    spec = token_spec()
    require_same_codes(spec, spec.with_classes(()), owner="the prior", other="the tokenizer")
    two = dataclasses.replace(spec, levels=(CodeLevel(height=1, width=1, codebook_size=4), *spec.levels))
    with pytest.raises(ContractError, match="levels"):
        require_same_codes(spec, two, owner="the prior", other="the tokenizer")
