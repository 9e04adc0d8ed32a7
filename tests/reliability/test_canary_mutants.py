"""A tokenizer that computes something else than when it was frozen is refused, for any cause."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.errors import ContractError
from foundation.images.config import Preprocess
from stage1_tokenizer import canary
from stage1_tokenizer.canary import FILE, check_canary, check_canary_quickly, load_canary
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask


def seeing(model: TokenizerModel, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let the encoder see other images than it is given."""
    original = model.encoder.forward
    model.encoder.forward = lambda images: original(change(images))  # type: ignore[method-assign]


def train_mode(model: TokenizerModel, task: TokenizerTask) -> None:
    model.train()


def raw_weights(model: TokenizerModel, task: TokenizerTask) -> None:
    model.load_state_dict(task.model.state_dict())


def unit_range(model: TokenizerModel, task: TokenizerTask) -> None:
    seeing(model, lambda images: (images + 1) / 2)


def blue_first(model: TokenizerModel, task: TokenizerTask) -> None:
    seeing(model, lambda images: images.flip(1))


def bfloat16(model: TokenizerModel, task: TokenizerTask) -> None:
    original = model.encoder.forward

    def lower(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return original(images).float()

    model.encoder.forward = lower  # type: ignore[method-assign]


def shuffled_codebook(model: TokenizerModel, task: TokenizerTask) -> None:
    book = model.bottleneck.quantizer.codebook
    book.data.copy_(book[torch.randperm(len(book), generator=torch.Generator().manual_seed(1))])


def dropped_layer(model: TokenizerModel, task: TokenizerTask) -> None:
    model.encoder.middle[0] = torch.nn.Identity()


def other_filter(model: TokenizerModel, task: TokenizerTask) -> None:
    wrong = Preprocess(height=16, width=16, resize="bilinear")
    object.__setattr__(model, "preprocess", wrong)


def dropped_decoder_layer(model: TokenizerModel, task: TokenizerTask) -> None:
    model.decoder.middle[0] = torch.nn.Identity()


def other_background(model: TokenizerModel, task: TokenizerTask) -> None:
    object.__setattr__(model, "preprocess", Preprocess(height=16, width=16, background=(0, 0, 0)))


MUTANTS = (train_mode, raw_weights, unit_range, blue_first, bfloat16, shuffled_codebook, dropped_layer, other_filter)
MORE = (dropped_decoder_layer, other_background)


@pytest.mark.parametrize("check", [check_canary, check_canary_quickly])
@pytest.mark.parametrize("mutate", [*MUTANTS, *MORE])
def test_the_canary_refuses(
    mutate: Callable[[TokenizerModel, Any], None], check: Callable, frozen: Path, task: TokenizerTask, keep: Callable
) -> None:
    model = TokenizerModel.load(frozen)
    check(model, frozen)
    mutate(model, task)
    with pytest.raises(ContractError):
        check(model, frozen)
    keep("the canary", mutants=1, refused=1, **{f"by {check.__name__}": 1})


def test_the_frozen_tokenizer_passes_again_and_again_one_image_at_a_time_too(frozen: Path) -> None:
    model = TokenizerModel.load(frozen)
    for _ in range(3):
        check_canary(model, frozen)
        check_canary_quickly(model, frozen, seconds=60)


def test_codes_that_rounding_can_change_are_not_compared(frozen: Path, tmp_path: Path) -> None:
    """Near ties differ between machines, and between batch sizes; a change of one must not lock anyone out."""
    folder, model = Path(shutil.copytree(frozen, tmp_path / "tokenizer")), TokenizerModel.load(frozen)
    tensors = load_file(folder / FILE)
    tensors["stable"].view(-1)[:3] = False
    tensors["codes"].view(-1)[:3] += 1
    tensors["codes"] %= 32
    tensors["psnr"] = canary._psnr(model, tensors["pixels"].numpy(), tensors["codes"])
    save_file(tensors, folder / FILE)
    check_canary(model, folder)
    tensors["stable"].fill_(True)
    save_file(tensors, folder / FILE)
    with pytest.raises(ContractError, match="no longer gives the codes"):
        check_canary(model, folder)
    stored = load_canary(frozen)
    assert stored is not None and stored.stable.float().mean() > 0.95


def test_a_tokenizer_frozen_by_an_earlier_version_is_checked_as_far_as_it_goes(frozen: Path, tmp_path: Path) -> None:
    folder, model = Path(shutil.copytree(frozen, tmp_path / "tokenizer")), TokenizerModel.load(frozen)
    tensors = load_file(folder / FILE)
    save_file({name: tensors[name] for name in ("pixels", "codes")}, folder / FILE)
    check_canary(model, folder)
    check_canary_quickly(model, folder)
    dropped_layer(model, None)
    with pytest.raises(ContractError, match="no longer gives the codes"):
        check_canary(model, folder)


def test_without_a_canary_nothing_is_checked(frozen: Path, tmp_path: Path) -> None:
    folder, model = Path(shutil.copytree(frozen, tmp_path / "tokenizer")), TokenizerModel.load(frozen)
    (folder / FILE).unlink()
    check_canary(model, folder)
    check_canary_quickly(model, folder)
