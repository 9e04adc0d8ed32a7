"""Codes in a lower precision: judged by the stored images, the same for all processes, noted in the dataset."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_export import CONFIG, make_inputs, open_tiny, tiny_export

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import read_manifest
from foundation.config import from_dict
from foundation.errors import ConfigError, ContractError
from foundation.training.arithmetic import arithmetic
from pipeline.encoding.plan import EncodeConfig, ExportPlan
from stage1_tokenizer.canary import FILE, require_few_changes
from stage1_tokenizer.tokenizer import TokenizerModel

BF16 = dataclasses.replace(CONFIG, precision="bf16", max_code_changes=0.5)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_the_arithmetic_is_lower_inside_and_as_before_afterwards() -> None:
    torch.manual_seed(0)
    x, before = torch.randn(8, 8), torch.get_float32_matmul_precision()
    exact = x @ x
    with arithmetic(x.device, "bf16"):
        assert (x @ x).dtype == torch.bfloat16 and torch.get_float32_matmul_precision() == "highest"
    for precision in ("float32", "tf32"):
        with torch.autocast("cpu", dtype=torch.bfloat16), arithmetic(x.device, precision):
            assert torch.equal(x @ x, exact), "a CPU has no TF32"
    assert torch.get_float32_matmul_precision() == before


def test_codes_of_bf16_are_close_and_dataset_and_plan_say_so(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    assert tiny_export(*inputs, tmp_path / "exact") and tiny_export(*inputs, tmp_path / "lower", BF16)
    exact, lower = (TokenDataset(tmp_path / name, "train").codes_NT[:] for name in ("exact", "lower"))
    share = float(np.mean(exact != lower))
    assert 0 < share < 0.5
    assert read_manifest(tmp_path / "lower")["precision"] == "bf16" and "precision" not in read_manifest(
        tmp_path / "exact"
    )
    assert ExportPlan.from_json(tmp_path / "lower" / "plan.json").precision == "bf16"
    with pytest.raises(ContractError, match="precision: the plan has bf16, this run float32"):
        open_tiny(*inputs, tmp_path / "lower", CONFIG)


def test_too_many_changed_codes_are_refused_with_both_numbers(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer = TokenizerModel.load(inputs[1])
    share, n_images = require_few_changes(tokenizer, inputs[1], "bf16", 1.0)
    assert n_images == 8 and 0 < share < 0.5
    limit = share / 2
    with pytest.raises(ContractError, match=rf"{share:.2%} of the codes(.|\n)*at most {limit:.2%}"):
        open_tiny(*inputs, tmp_path / "codes", dataclasses.replace(BF16, max_code_changes=limit))
    assert not (tmp_path / "codes").exists(), "nothing was planned"
    assert require_few_changes(tokenizer, inputs[1], "tf32", 0.0)[0] == 0.0, "a CPU computes float32"


def test_without_stored_images_nothing_judges(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer = TokenizerModel.load(inputs[1])
    for path in inputs[1].iterdir():
        if path.name != FILE:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ContractError, match="no stored images"):
        require_few_changes(tokenizer, tmp_path, "bf16", 1.0)


@pytest.mark.parametrize("changes", [{"precision": "fp8"}, {"max_code_changes": 1.5}])
def test_a_precision_that_does_not_exist_is_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        from_dict(EncodeConfig, changes)


def test_plans_from_before_are_of_float32(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    plan = open_tiny(*inputs, tmp_path / "codes").plan
    saved = json.loads((tmp_path / "codes" / "plan.json").read_bytes())
    assert saved["how"].pop("precision") == "float32"
    assert plan.precision == "float32" and dataclasses.replace(plan, precision="tf32").identity == plan.identity


def test_the_first_batches_of_a_file_are_read_while_the_one_before_is_encoded(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = open_tiny(*inputs, tmp_path / "codes")
    read, encoder = [], export.encoder
    real = encoder._start
    monkeypatch.setattr(encoder, "_start", lambda planned, *rest: read.append(planned.name) or real(planned, *rest))
    first, second = export.shards[:2]
    export.write(first)
    assert read.count(first.name) == 2 and read.count(second.name) == 2, "4 images, 3 at once"
    export.write(second)
    assert read.count(second.name) == 2, "none twice"
    third, fourth = export.shards[2:4]
    assert read.count(third.name) == 2
    export.write(fourth)  # another process took the third
    assert read.count(fourth.name) == 2
    export.write(third)
    assert read.count(third.name) == 4
    encoder.close()
    assert tiny_export(*inputs, tmp_path / "codes") and tiny_export(*inputs, tmp_path / "plain")
    for split in ("train", "validation"):
        one, other = (TokenDataset(tmp_path / name, split).codes_NT[:] for name in ("codes", "plain"))
        assert np.array_equal(one, other)
