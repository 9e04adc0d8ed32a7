"""FSQ with unit-variance channels: levels are used evenly whatever the mean and scale of normal latents."""

from __future__ import annotations

import os

import pytest
import torch

from stage1_tokenizer.quantizers.base import to_rows
from stage1_tokenizer.quantizers.config import FSQConfig
from stage1_tokenizer.quantizers.fsq import FSQ

LEVELS = (8, 5, 3, 2)
SHIFT, SCALE = torch.tensor([5.0, -3.0, 0.0, 1.0]), torch.tensor([0.1, 4.0, 1.0, 30.0])


def normal(n: int = 64, seed: int = 0) -> torch.Tensor:
    """(n, 4, 8, 8) normal latents of a mean and a scale for each channel."""
    values = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return values * SCALE.view(-1, 1, 1) + SHIFT.view(-1, 1, 1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def unit() -> FSQ:
    return FSQ(FSQConfig(levels=LEVELS, unit_variance=True))


def started(n: int = 64) -> FSQ:
    fsq = unit()
    fsq.initialize(normal(n), generator())
    return fsq


def shares(fsq: FSQ, latents: torch.Tensor) -> list[torch.Tensor]:
    """Of each channel's levels in use."""
    codes, found = fsq.encode(latents).flatten(), []
    for levels in LEVELS:
        found.append(torch.bincount(codes % levels, minlength=levels) / len(codes))
        codes = codes // levels
    return found


def test_levels_of_normal_latents_are_used_evenly_whatever_their_mean_and_scale() -> None:
    for share, levels in zip(shares(started(), normal(256, seed=1)), LEVELS, strict=True):
        assert float((share * levels - 1).abs().max()) < 0.15


def test_without_it_the_outermost_levels_of_normal_latents_are_used_half_as_often() -> None:
    plain = FSQ(FSQConfig(levels=LEVELS))
    unscaled = (normal(256) - SHIFT.view(-1, 1, 1)) / SCALE.view(-1, 1, 1)
    assert float(shares(plain, unscaled)[0][0]) * LEVELS[0] < 0.75


def test_running_moments_follow_training_and_stand_still_in_evaluation() -> None:
    fsq = started()
    before = fsq.mean.clone()
    fsq.eval()
    fsq(normal(seed=1) + 10)
    fsq.update(0, generator())
    assert torch.equal(fsq.mean, before)
    fsq.train()
    for step in range(800):
        fsq(normal(2, seed=step) + 10)
        fsq.update(step, generator())
    assert torch.allclose(fsq.mean, SHIFT + 10, atol=0.1 * float(SCALE.max()))
    assert torch.allclose(fsq.variance.sqrt() / SCALE, torch.ones(4), atol=0.1)


def test_a_step_that_was_not_taken_leaves_the_moments_alone() -> None:
    fsq = started().train()
    before = fsq.variance.clone()
    fsq(normal() * float("nan"))
    fsq.forget()
    fsq.update(1, generator())
    assert torch.equal(fsq.variance, before)


def test_training_and_evaluation_quantize_alike_and_the_state_holds_all_of_it() -> None:
    fsq, latents = started().train(), normal(seed=2)
    trained = fsq(latents)
    assert torch.equal(trained.latents_BCHW, fsq.decode(trained.codes_BHW))
    other = unit()
    other.load_state_dict(fsq.state_dict())
    assert torch.equal(other.eval()(latents).codes_BHW, trained.codes_BHW)


def test_a_codebook_without_it_has_no_state() -> None:
    assert not FSQ(FSQConfig(levels=LEVELS)).state_dict()


def test_the_whitened_start_has_unit_variance() -> None:
    fsq, latents = unit(), normal()
    matrix, offset = fsq.projection_start(latents)  # type: ignore[misc]
    rows = to_rows(latents) @ matrix.T + offset
    assert torch.allclose(rows.mean(0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(rows.T.cov(), torch.eye(4), atol=1e-2)


def _two_processes(expected: torch.Tensor) -> None:
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process keeps its parent's
    torch.set_num_threads(1)  # nor can it use the parent's OpenMP threads
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    assert torch.allclose(_moments(lambda latents: latents.chunk(2)[state.process_index]), expected, rtol=1e-6)


def _moments(part) -> torch.Tensor:  # type: ignore[no-untyped-def]
    fsq = unit().train()
    fsq.initialize(part(normal()), generator())
    fsq(part(normal(seed=1)))
    fsq.update(0, generator())
    return torch.stack([fsq.mean, fsq.variance])


def test_two_processes_have_the_moments_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    debug_launcher(_two_processes, (_moments(lambda latents: latents),), num_processes=2)
