"""What must come back the same: the order of samples, codes of any size, a state to the last tensor."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_tokenizer import fresh_task
from support.small_training import Numbers
from support.token_folders import token_spec

from foundation.codes.shards import Shard, read_shard, write_shard
from foundation.errors import DataError, TesseraError
from foundation.storage.serialization import join_state, split_state, tensors_sha256
from foundation.training.checkpoints import latest_checkpoint, save_checkpoint
from foundation.training.loading import BatchShare, read_batches
from stage1_tokenizer.tokenizer import TokenizerModel

BATCH, STEPS = 12, 14


def seen(worlds: list[tuple[int, int]]) -> list[int]:
    """Samples in the order of the global batches, for (processes, steps) one after the other."""
    start, samples = 0, []
    for world, n_steps in worlds:
        shares = [BatchShare(BATCH, rank, world) for rank in range(world)]
        streams = [read_batches(Numbers(), each, seed=3, start=start, end=STEPS) for each in shares]
        for _ in range(n_steps):
            samples += [each for stream in streams for each in next(stream)["indices"].tolist()]
        for stream in streams:
            stream.close()
        start += n_steps
    return samples


def test_the_order_of_samples_does_not_depend_on_how_many_processes_there_are(keep: Callable) -> None:
    """Changed in the middle of epochs; compared in order, not as a set."""
    alone = seen([(1, STEPS)])
    rng = random.Random(0)
    for _ in range(10):
        changes, left = [], STEPS
        while left:
            changes.append((rng.choice([1, 2, 3, 4, 6, 12]), min(left, rng.randrange(1, 6))))
            left -= changes[-1][1]
        assert seen(changes) == alone, changes
    for epoch in range(len(alone) // 25):
        assert sorted(alone[epoch * 25 : epoch * 25 + 25]) == list(range(25))
    keep("the order of samples", **{"changes of the number of processes": "10 random walks", "other orders": 0})


@pytest.mark.parametrize("codebook_size", [65_535, 65_536, 65_537, 1 << 18])
def test_codes_of_any_size_come_back(codebook_size: int, tmp_path: Path, keep: Callable) -> None:
    spec = token_spec(codebook_size, labelled=False)
    edges = np.array([0, 1, 32_767, 32_768, 65_533, 65_534, 65_535, 65_536, 70_000, (1 << 18) - 1])
    codes = np.resize(edges[edges < codebook_size], (4, 6))
    shard = Shard(codes, [f"{i}" for i in range(4)], np.zeros(4, np.uint8), None)
    write_shard(tmp_path / "a.parquet", shard, spec)
    assert np.array_equal(read_shard(tmp_path / "a.parquet", spec).codes_BT, codes)
    for wrong in (-1, codebook_size, codebook_size + 65_536):
        bad = dataclasses.replace(shard, codes_BT=np.full((4, 6), wrong))
        with pytest.raises(DataError, match="codebook"):
            write_shard(tmp_path / "b.parquet", bad, spec)
        assert not (tmp_path / "b.parquet").exists()
    keep("codes of any size", sizes=1, wrapped=0)


def test_a_model_with_a_tensor_too_many_or_too_few_is_refused_by_its_name(frozen: Path, tmp_path: Path) -> None:
    """With a hash that agrees, as a faulty program would write it."""
    tensors = load_file(frozen / "model.safetensors")
    name = sorted(tensors)[0]
    plain = name.removeprefix("model.")
    for case, changed in (
        ("missing", {key: value for key, value in tensors.items() if key != name}),
        ("left over", {**tensors, "model.extra": torch.zeros(1)}),
        ("other shapes", {**tensors, name: torch.zeros(3)}),
    ):
        folder = Path(shutil.copytree(frozen, tmp_path / case))
        save_file(changed, folder / "model.safetensors")
        settings = json.loads((folder / "config.json").read_text())
        settings["weights_sha256"] = tensors_sha256({k.removeprefix("model."): v for k, v in changed.items()})
        (folder / "config.json").write_text(json.dumps(settings))
        with pytest.raises(TesseraError, match=rf"{case} \['{'extra' if case == 'left over' else plain}"):
            TokenizerModel.load(folder)


@pytest.mark.parametrize("part", ["model", "average", "objective/adversary/discriminator/model"])
def test_a_state_with_a_tensor_too_few_is_not_restored(part: str, keep: Callable) -> None:
    from reliability.test_not_finite import GAN

    task = fresh_task(adversarial=GAN)
    state: Any = join_state(*split_state(task.state_dict()))
    place = state
    for name in part.split("/"):
        place = place[name]
    del place[next(iter(place))]
    with pytest.raises(RuntimeError, match="Missing key"):
        task.load_state_dict(state)
    keep("states restored whole", **{"parts with a missing tensor refused": 1})


def test_a_checkpoint_gives_back_every_value_to_the_bit(tmp_path: Path) -> None:
    numbers = {
        "nan-free": torch.tensor([0.1, -0.0, 1e-45, 3e38]),
        "half": torch.arange(9).to(torch.bfloat16),
        "whole": torch.tensor([2**62 + 1, -5]),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7.5),
    }
    state = {"numbers": numbers, 5: {"x": [torch.ones(2), None, "a"]}, "rate": 0.1 + 0.2, "step": 9}
    save_checkpoint(tmp_path, 9, state)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.state["rate"] == 0.1 + 0.2 and found.state[5]["x"][1:] == [None, "a"]
    for name, value in numbers.items():
        back = found.state["numbers"][name]
        assert back.dtype == value.dtype and back.shape == value.shape
        assert torch.equal(back, value)
    assert str(found.state["numbers"]["nan-free"][1]) == str(torch.tensor(-0.0))


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(TesseraError, match="a/b: two parts of the state have one name"):
        split_state({"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}})
