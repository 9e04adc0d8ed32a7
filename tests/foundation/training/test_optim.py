"""Learning rates, weight-decay groups, the guard."""

import contextlib
import math

import pytest
import torch
from torch import nn

from foundation.errors import ConfigError, TrainingError
from foundation.training.config import OptimConfig
from foundation.training.optim import StepGuard, adamw, learning_rate, no_decay


def test_the_cosine_warms_up_and_ends_at_its_floor() -> None:
    config = OptimConfig(learning_rate=1.0, warmup_steps=10, min_factor=0.1)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_constant_schedule_stays() -> None:
    config = OptimConfig(learning_rate=0.7, warmup_steps=2, schedule="constant", min_factor=0.3)
    assert [learning_rate(config, step, 5) for step in range(5)] == [0.35, 0.7, 0.7, 0.7, 0.7]


def test_wsd_is_flat_and_falls_with_one_minus_the_root_over_its_share() -> None:
    config = OptimConfig(learning_rate=2.0, warmup_steps=10, schedule="wsd", decay_share=0.25, min_factor=0.1)
    rates = [learning_rate(config, step, 200) for step in range(201)]
    assert rates[:10] == pytest.approx([0.2 * n for n in range(1, 11)])
    assert rates[10:151] == pytest.approx([2.0] * 141)
    for step in (151, 163, 199, 200):
        shape = 1 - math.sqrt((step - 150) / 50)
        assert rates[step] == pytest.approx(2.0 * (0.1 + 0.9 * shape))
    assert rates[200] == pytest.approx(0.2)


@pytest.mark.parametrize("decay_share", [0.0, -0.1, 1.1])
def test_a_decay_that_is_no_share_is_refused(decay_share: float) -> None:
    with pytest.raises(ConfigError, match="decay_share"):
        OptimConfig(decay_share=decay_share)


def test_decay_spares_vectors_and_tagged_matrices() -> None:
    module = nn.Module()
    module.kernel, module.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    module.table = no_decay(nn.Parameter(torch.ones(2, 2)))
    decayed, exempt = adamw(module, OptimConfig(weight_decay=0.5)).param_groups
    assert [id(p) for p in decayed["params"]] == [id(module.kernel)]
    assert decayed["weight_decay"] == 0.5 and exempt["weight_decay"] == 0.0


def test_the_guard_counts_and_gives_up_after_ten_in_a_row() -> None:
    guard, bad, good = StepGuard(), torch.tensor(torch.inf), torch.tensor(1.0)
    assert guard.allows(good) and not any(guard.allows(bad) for _ in range(9))
    restored = StepGuard()
    restored.load_state_dict(guard.state_dict())
    assert restored.n_skipped == 9
    with pytest.raises(TrainingError, match="10 steps in a row"):
        restored.allows(bad)


@pytest.mark.parametrize(("every", "stops"), [(90, True), (101, False)])
def test_the_guard_gives_up_where_more_than_one_in_a_hundred_is_bad(every: int, stops: bool) -> None:
    guard, bad, good = StepGuard(), torch.tensor(torch.nan), torch.tensor(1.0)
    with pytest.raises(TrainingError, match="11 of the last 1,000 steps") if stops else contextlib.nullcontext():
        for step in range(5000):
            guard.allows(good if step % every else bad)
            if step % 37 == 0:  # as after a resume
                state, guard = guard.state_dict(), StepGuard()
                guard.load_state_dict(state)
    assert guard.n_skipped == (11 if stops else 50)


def test_a_clip_norm_of_null_never_scales() -> None:
    with pytest.raises(ConfigError, match="clip_norm"):
        OptimConfig(clip_norm=0.0)
    assert OptimConfig(clip_norm=None).clip_norm is None
