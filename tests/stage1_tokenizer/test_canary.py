"""The stored images tell a tokenizer that does something else from the one that was frozen."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foundation.errors import ContractError
from stage1_tokenizer import canary
from stage1_tokenizer.canary import check_canary, load_canary, load_checked
from stage1_tokenizer.tokenizer import TokenizerModel


@pytest.fixture
def tokenizer(finished_run: Path) -> TokenizerModel:
    return TokenizerModel.load(finished_run / "tokenizer")


def test_the_frozen_tokenizer_passes(tokenizer: TokenizerModel, finished_run: Path) -> None:
    check_canary(tokenizer, finished_run / "tokenizer")
    canary = load_canary(finished_run / "tokenizer")
    assert canary is not None
    assert canary.pixels_BYXC.shape == (16, 8, 8, 1) and canary.codes.shape == (16, 4, 4)


def dropped_layer(model: TokenizerModel) -> None:
    model.encoder.middle[0] = torch.nn.Identity()


def other_range(model: TokenizerModel) -> None:
    original = model.encoder.forward
    model.encoder.forward = lambda images: original((images + 1) / 2)  # type: ignore[method-assign]


def raw_weights(model: TokenizerModel) -> None:
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


def mirrored(model: TokenizerModel) -> None:
    original = model.encoder.forward
    model.encoder.forward = lambda images: original(images.flip(-1))  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [dropped_layer, other_range, raw_weights, mirrored])
def test_a_tokenizer_that_does_something_else_is_refused(
    tokenizer: TokenizerModel, finished_run: Path, change: Callable[[TokenizerModel], None]
) -> None:
    change(tokenizer)
    with pytest.raises(ContractError, match="no longer gives the codes"):
        check_canary(tokenizer, finished_run / "tokenizer")


ELSEWHERE = torch.device("meta")


REASONS = {
    "3.1% of the codes differ": ContractError("gives other codes", found="3.1% of the codes differ"),
    "aten::x is not implemented": NotImplementedError("aten::x is not implemented for this device"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_codes_are_made_on_the_cpu_where_a_device_makes_others_or_lacks_an_operation(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    def checked(model: TokenizerModel, folder: Path) -> None:
        if next(model.parameters()).device == ELSEWHERE:
            raise REASONS[reason]

    monkeypatch.setattr(canary, "check_canary", checked)
    model = load_checked(finished_run / "tokenizer", ELSEWHERE)
    assert next(model.parameters()).device.type == "cpu"
    said = capsys.readouterr().err
    assert "device: cpu for the codes, since on meta: " in said and reason in said


def test_other_codes_on_the_cpu_too_are_refused(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: TokenizerModel, folder: Path) -> None:
        raise ContractError("gives other codes", field=str(folder))

    monkeypatch.setattr(canary, "check_canary", refuse)
    for device in (ELSEWHERE, torch.device("cpu")):
        with pytest.raises(ContractError, match="gives other codes"):
            load_checked(finished_run / "tokenizer", device)
