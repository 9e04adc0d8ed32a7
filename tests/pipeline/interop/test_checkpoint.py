"""The state dict is found in whatever wraps it; two files make one checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foundation.errors import CheckpointError
from pipeline.interop.checkpoint import open_checkpoint

STATE = {"encoder.a": torch.arange(6.0).view(2, 3), "decoder.b": torch.ones(1)}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrapped_training_are_stripped(prefix: str, tmp_path: Path) -> None:
    torch.save({f"{prefix}{name}": value for name, value in STATE.items()}, tmp_path / "last.pt")
    found = open_checkpoint([tmp_path / "last.pt"])
    assert set(found.tensors) == set(STATE)
    assert torch.equal(found.tensors["encoder.a"].read(), STATE["encoder.a"])


def test_content_beside_the_state_dict_is_listed_with_a_reason(tmp_path: Path) -> None:
    torch.save({"state_dict": {**STATE, "n": 3}, "epoch": 7}, tmp_path / "last.ckpt")
    found = open_checkpoint([tmp_path / "last.ckpt"])
    assert found.beside == {"n": "not a tensor", "epoch": "stands beside state_dict"}


def test_every_element_type_of_weights_is_read(tmp_path: Path) -> None:
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8)
    state = {str(dtype): torch.ones(2, dtype=dtype) for dtype in (*types, torch.bool)}
    save_file(state, tmp_path / "all.safetensors")
    found = open_checkpoint([tmp_path / "all.safetensors"])
    assert {name: each.read().dtype for name, each in found.tensors.items()} == {
        name: value.dtype for name, value in state.items()
    }


def test_a_part_is_selected_by_its_prefix(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "both.safetensors")
    whole = open_checkpoint([tmp_path / "both.safetensors"])
    part = whole.below("encoder.", "another part")
    assert set(part.tensors) == {"a"} and part.beside == {"decoder.b": "another part"}
    assert part.shape("a") == (2, 3) and part.has("a") and not part.has("b")
    with pytest.raises(CheckpointError, match=r"both\.safetensors: lacks a tensor\n  found:    no b"):
        part.shape("b")


def test_two_files_must_hold_different_tensors(tmp_path: Path) -> None:
    for name, value in STATE.items():
        save_file({name: value}, tmp_path / name)
    assert set(open_checkpoint([tmp_path / name for name in STATE]).tensors) == set(STATE)
    with pytest.raises(CheckpointError, match=r"repeats tensors(.|\n)*encoder\.a"):
        open_checkpoint([tmp_path / "encoder.a", tmp_path / "encoder.a"])


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for path, reason in (
        (tmp_path, "a folder"),
        (tmp_path / "absent", "no such file"),
        (tmp_path / "empty.pt", "epoch"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            open_checkpoint([path])
