"""Refit of the decoder: encoder and codebook stay to the bit, the decoder learns on, and a resumed run is the same."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from support.tokenizer_systems import TERMS, images, task

from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.training.lengths import Rates, Schedule
from pipeline.runs.recipe import TokenizerStage
from stage1_tokenizer.config import TokenizerTraining
from stage1_tokenizer.parts import CODING, part_of
from stage1_tokenizer.train import TokenizerTask

N_STEPS, SWITCH = 8, 4
REFIT = {"freeze_coding_after": 0.5}


def train(trained: TokenizerTask, steps: range, batch: torch.Tensor | None = None) -> TokenizerTask:
    for number in steps:
        torch.manual_seed(number)  # as fit does
        trained.train_step({"images": images(6) if batch is None else batch}, number)
    return trained


def weights(trained: TokenizerTask, *, coding: bool) -> dict[str, torch.Tensor]:
    found = {}
    for kind, model in (("model", trained.model), ("average", trained.exported())):
        for name, each in model.state_dict().items():
            if (part_of(name) in CODING) == coding:
                found[f"{kind}.{name}"] = each.clone()
    return found


@pytest.mark.parametrize("name", ["vq", "fsq", "vqvae2", "kl", "plain terms"])
def test_what_makes_codes_stays_to_the_bit_and_the_decoder_learns_on(name: str) -> None:
    trained = train(task(name, **REFIT), range(SWITCH))
    exported = trained.exported()
    codes, coding = exported.encode(images(6)), weights(trained, coding=True)
    train(trained, range(SWITCH, SWITCH + 1))
    decoding = weights(trained, coding=False)
    train(trained, range(SWITCH + 1, N_STEPS))
    assert torch.equal(trained.exported().encode(images(6)), codes)
    assert torch.equal(trained.model.eval().encode(images(6)), codes), "the model goes on from the average"
    after = weights(trained, coding=True)
    assert all(torch.equal(after[each], value) for each, value in coding.items() if each.startswith("average."))
    moved = weights(trained, coding=False)
    assert any(not torch.equal(moved[each], value) for each, value in decoding.items())


@pytest.mark.parametrize("name", ["fsq unit variance", "plain terms"])
@pytest.mark.parametrize(("micro", "stop"), [(None, SWITCH), (2, SWITCH), (2, SWITCH + 1)])
def test_a_training_resumed_around_the_switch_is_the_same(name: str, micro: int | None, stop: int) -> None:
    settings: dict[str, Any] = {**REFIT, "dropout": 0.2, "micro_batch_size": micro}
    whole = train(task(name, **settings), range(N_STEPS))
    state = train(task(name, **settings), range(stop)).state_dict()
    resumed = task(name, **settings)
    resumed.load_state_dict(state)
    train(resumed, range(stop, N_STEPS))
    for coding in (True, False):
        one, other = weights(whole, coding=coding), weights(resumed, coding=coding)
        assert all(torch.equal(one[each], other[each]) for each in one)


def test_before_the_switch_it_is_the_training_without_it() -> None:
    plain, refit = (train(task("vq", **settings), range(SWITCH)) for settings in ({}, REFIT))
    for coding in (True, False):
        one, other = weights(plain, coding=coding), weights(refit, coding=coding)
        assert all(torch.equal(one[each], other[each]) for each in one)


def test_the_encoder_is_computed_without_a_graph() -> None:
    trained, graphs = task("vq", **REFIT), []
    trained.model.encoder.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    train(trained, range(SWITCH + 1))
    assert graphs[1:] == [True] * SWITCH + [False], "the first places the codebook"


def test_alignment_is_left_out_of_a_refit_and_equivariance_is_not() -> None:
    trained = train(task("plain terms", **REFIT), range(SWITCH))
    row = trained.train_step({"images": images(6)}, SWITCH)
    assert "loss_equivariance" in row and "loss_lite0" in row and "loss_alignment" not in row


def test_lengths_share_the_steps_before_the_first_switch() -> None:
    rates = task("vq", **REFIT, optim={"schedule": "constant", "learning_rate": 1e-3}).rates
    assert [each.share for each in rates] == [1.0, 0.5]
    assert Schedule(100, rates).shared_steps(110) == 50 == Schedule(110, rates).shared_steps(100)
    assert Schedule(100, rates).shared_steps(100) == 100
    assert Schedule(100, (Rates(rates[0].optim),)).shared_steps(110) == 100


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5])
def test_a_share_that_freezes_nothing_or_everything_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="freeze_coding_after"):
        TokenizerTraining(freeze_coding_after=share)


def test_freezing_from_the_start_and_later_is_refused() -> None:
    values = {"start_from": "somewhere", "freeze": ["encoder"], "training": REFIT}
    with pytest.raises(ConfigError, match="freeze_coding_after"):
        from_dict(TokenizerStage, values)


def _two_processes() -> None:
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process keeps its parent's
    torch.set_num_threads(1)  # nor can it use the parent's OpenMP threads
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    batch = images(6).chunk(2)[state.process_index]
    for micro in (None, 2):
        trained = train(task("plain terms", micro_batch_size=micro, **REFIT), range(SWITCH), batch)
        coding = weights(trained, coding=True)
        train(trained, range(SWITCH, N_STEPS), batch)
        after = weights(trained, coding=True)
        assert all(torch.equal(after[each], value) for each, value in coding.items() if each.startswith("average."))
        for each in trained.model.state_dict().values():
            others = [torch.empty_like(each) for _ in range(2)]
            torch.distributed.all_gather(others, each.contiguous())
            assert torch.equal(*others), "processes agree"


def test_two_processes_switch_together_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    assert {each["type"] for each in TERMS} == {"lite0", "alignment", "equivariance", "texture"}
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    debug_launcher(_two_processes, num_processes=2)
