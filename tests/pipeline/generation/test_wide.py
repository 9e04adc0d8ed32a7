"""Larger images than trained: the window covers every code once, and sees what was drawn before it."""

import dataclasses

import pytest
import torch

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess
from pipeline import ImageGenerator
from pipeline.generation.base import request_of
from pipeline.generation.requests import image_seed
from pipeline.generation.wide import draw_wide, spans, wide_grid


@pytest.mark.parametrize("grid", [(4, 6), (4, 7), (9, 6), (13, 25), (16, 16)])
@pytest.mark.parametrize("window", [(4, 6), (1, 1), (4, 5), (3, 2)])
def test_the_window_draws_each_code_once_in_order_and_never_leaves_the_grid(
    grid: tuple[int, int], window: tuple[int, int]
) -> None:
    if window[0] > grid[0] or window[1] > grid[1]:
        pytest.skip("a grid is no smaller than its window")
    seen = []
    for run in spans(grid, window):
        assert 0 <= run.top <= grid[0] - window[0] and 0 <= run.left <= grid[1] - window[1]
        assert run.top <= run.row < run.top + window[0]
        assert run.left <= run.first < run.last <= run.left + window[1]
        assert run.row - run.top >= min(run.row, window[0] // 2), "half a window above, or all there is"
        assert run.first - run.left >= min(run.first, window[1] // 2), "half a window to the left"
        seen += [(run.row, column) for column in range(run.first, run.last)]
    assert seen == [(row, column) for row in range(grid[0]) for column in range(grid[1])]


def test_at_the_trained_size_it_is_a_plain_draw(untrained: ImageGenerator) -> None:
    request, _ = request_of(untrained, ["a", "b"], 2, {"seed": 5, "guidance_scale": 1.5})
    plain = untrained(["a", "b"], 2, seed=5, guidance_scale=1.5).codes
    assert torch.equal(draw_wide(untrained.prior, request, (4, 6), show_progress=False), plain)


def test_larger_images_have_their_size_and_are_the_same_alone(untrained: ImageGenerator) -> None:
    out = untrained(["a", "c"], 2, seed=2, height=16, width=20, output_type="pt", batch_size=3)
    assert out.codes.shape == (4, 8, 10) and out.images.shape == (4, 1, 16, 20)
    assert out.seeds == [image_seed(2, i) for i in range(4)] and out.labels == [0, 0, 2, 2]
    alone = untrained("c", seed=out.seeds[2], height=16, width=20, output_type="latent")
    assert torch.equal(alone.codes[0], out.codes[2])
    assert int(out.codes.min()) >= 0 and int(out.codes.max()) < 48
    assert torch.equal(untrained("a", seed=2, height=8).codes, untrained("a", seed=2).codes)


def test_a_code_depends_on_its_window_alone(untrained: ImageGenerator) -> None:
    """Greedy, so that random numbers have no part: another beginning out of sight changes nothing."""
    from pipeline.generation.drawing import SampleRequest
    from pipeline.generation.wide import Span, _sample_span

    greedy = dataclasses.replace(untrained.defaults, temperature=0.0)
    request = SampleRequest(labels=[1], seeds=[0], sampling=greedy, max_rows=1)
    codes = torch.randint(0, 48, (1, 8, 12, 1), generator=torch.Generator().manual_seed(0))
    span = Span(row=5, first=6, last=7, top=3, left=3)
    results = []
    for change in (None, (0, 0), (5, 2), (2, 6), (4, 4)):
        changed = codes.clone()
        if change is not None:
            changed[0, change[0], change[1]] = (changed[0, change[0], change[1]] + 7) % 48
        _sample_span(untrained.prior, request, span, changed, torch.rand(1, 8, 12, 1, dtype=torch.float64))
        results.append(int(changed[0, 5, 6]))
    window = torch.full((1, 24), -1)
    window[0, :15] = codes[0, 3:7, 3:9].flatten()[:15]
    logits = untrained.prior(window.clamp_min(0), torch.tensor([1]))[0, 15]
    assert results[:4] == [int(logits.argmax())] * 4


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"height": 6}, "height"),
        ({"height": 9}, "height"),
        ({"width": 0}, "width"),
        ({"width": 2.0}, "width"),
        ({"height": 10**9}, "height"),
        ({"width": 16384, "height": 16384}, "height"),
        ({"width": float("inf")}, "width"),
        ({"height": 16, "best_of": 2}, "best_of"),
        ({"height": 16, "num_images_per_label": 10**9}, "images"),
        ({"height": 16, "callback_on_row": print}, "callback_on_row"),
        ({"width": 8000, "height": 8000}, "images"),
    ],  # the codes are few, but the decoder's maps are not
)
def test_sizes_that_cannot_be_are_refused_by_name(untrained: ImageGenerator, how: dict, field: str) -> None:
    with pytest.raises((ConfigError, DataError), match=f"^{field}"):
        untrained("a", seed=0, **how)


def test_several_grids_cannot_be_larger() -> None:
    levels = (CodeLevel(height=2, width=2, codebook_size=4), CodeLevel(height=4, width=4, codebook_size=4))
    spec = CodeSpec(levels=levels, stride=2, preprocess=Preprocess(height=8, width=8, mode="L"), fingerprint="f")
    assert wide_grid(spec, None, 8) is None
    with pytest.raises(ConfigError, match="one grid"):
        wide_grid(spec, 16, None)
