"""Sampling settings: ranges, saved values; guidance is exact at both ends, its schedules are what their papers say."""

import math
import subprocess
import sys
from dataclasses import fields
from typing import get_args

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from foundation.config import from_dict
from foundation.config_fields import without_defaults
from foundation.errors import ConfigError
from stage2_prior.decoding.sampling import FILTERS, SCHEDULES, SamplingConfig, Schedule, guidance_scales, guide


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), spread=st.floats(1e-3, 1e4), scale=st.floats(0, 20))
def test_the_ends_are_exact_and_the_rest_is_the_formula(seed: int, spread: float, scale: float) -> None:
    c, u = torch.randn(2, 3, 33, generator=torch.Generator().manual_seed(seed)) * spread
    assert torch.equal(guide(c, u, 1.0), c)
    assert torch.equal(guide(c, u, 0.0), u)
    expected = u.double() + scale * (c.double() - u.double())
    assert torch.allclose(guide(c, u, scale).double(), expected, rtol=0, atol=1e-5 * spread * (1 + scale))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    schedule=st.sampled_from(list(SCHEDULES)),
    scale=st.floats(0, 50),
    power=st.floats(0.1, 5),
    start=st.floats(0, 1),
    n_codes=st.integers(1, 70),
)
def test_scales_go_from_1_to_the_scale_and_never_back(
    schedule: str, scale: float, power: float, start: float, n_codes: int
) -> None:
    sampling = SamplingConfig(
        guidance_scale=scale,
        schedule=schedule,
        schedule_power=power,
        schedule_start=start,  # type: ignore[arg-type]
    )
    scales = guidance_scales(sampling, n_codes)
    assert scales.shape == (n_codes,) and scales.dtype == np.float64
    low, high = min(1.0, scale), max(1.0, scale)
    assert (scales >= low - 1e-12).all() and (scales <= high + 1e-12).all()
    steps = np.diff(scales) * (1 if scale >= 1 else -1)
    assert (steps >= -1e-12).all()
    if scale == 1:
        assert (scales == 1).all()


def test_each_schedule_is_its_formula() -> None:
    def scales(**changes: object) -> list[float]:
        return guidance_scales(SamplingConfig(guidance_scale=5.0, **changes), 5).tolist()  # type: ignore[arg-type]

    assert scales() == [5.0] * 5
    assert scales(schedule="linear") == pytest.approx([1, 2, 3, 4, 5])
    assert scales(schedule="cosine") == pytest.approx([1 + 4 * (1 - math.cos(math.pi / 8 * t)) for t in range(5)])
    assert scales(schedule="step", schedule_start=0.4) == [1, 1, 5, 5, 5]
    assert scales(schedule="step", schedule_start=0.0) == [5.0] * 5
    assert scales(schedule="step", schedule_start=1.0) == [1.0] * 5
    for power in (1.0, 2.75):
        expected = [1 + 4 * (1 - math.cos(math.pi * (t / 5) ** power)) / 2 for t in range(5)]
        assert scales(schedule="power-cosine", schedule_power=power) == pytest.approx(expected)


def test_outside_its_interval_guidance_does_nothing() -> None:
    sampling = SamplingConfig(guidance_scale=3.0, guidance_interval=(0.25, 0.75))
    assert guidance_scales(sampling, 8).tolist() == [1, 1, 3, 3, 3, 3, 1, 1]
    assert guidance_scales(SamplingConfig(guidance_scale=3.0, guidance_interval=(0.5, 0.5)), 8).tolist() == [1.0] * 8


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": "sine"},
        {"schedule_power": 0.0},
        {"schedule_power": math.nan},
        {"schedule_power": math.inf},
        {"schedule_start": -0.1},
        {"schedule_start": 1.1},
        {"schedule_start": math.nan},
        {"guidance_interval": (0.5, 0.2)},
        {"guidance_interval": (-0.1, 1.0)},
        {"guidance_interval": (0.0, 1.5)},
        {"guidance_interval": (0.0, math.nan)},
        {"guidance_interval": (0.5,)},
    ],
)
def test_guidance_outside_its_range_is_refused_by_name(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        SamplingConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": math.nan},
        {"typical_p": 0.0},
        {"typical_p": 1.1},
        {"entropy_temperature": (0.5, 1.0)},
        {"entropy_temperature": (-0.5, 1.0, 0.5)},
        {"entropy_temperature": (0.5, 0.0, 0.5)},
        {"entropy_temperature": (0.5, 1.0, 0.0)},
        {"entropy_temperature": (0.5, math.inf, 0.5)},
        {"guidance_scale": -0.1},
        {"guidance_scale": math.nan},
        {"guidance_scale": 1e300},
    ],
)
def test_values_outside_their_range_are_refused_by_name(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        SamplingConfig(**values)


def test_every_filter_is_a_setting_and_every_schedule_a_choice() -> None:
    assert set(FILTERS) <= {each.name for each in fields(SamplingConfig)}
    assert get_args(Schedule) == tuple(SCHEDULES)


def test_settings_saved_before_a_filter_existed_keep_their_meaning() -> None:
    saved = without_defaults(SamplingConfig(top_k=5))
    assert "min_p" not in saved
    assert from_dict(SamplingConfig, saved) == SamplingConfig(top_k=5)


def test_settings_are_read_without_torch_and_numpy() -> None:
    code = (
        "import sys; from stage2_prior.decoding.sampling import SamplingConfig; import stage2_prior.config; "
        "sys.exit(', '.join({'torch', 'numpy'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
