"""Orders of codes: permutations that keep a cell's codes together, schedules of passes, masks of training."""

from itertools import pairwise

import numpy as np
import pytest
from support.random_prior import LEVELS, spec

from foundation.codes.spec import CodeLevel
from stage2_prior.orders import (
    KNOWN,
    ORDERS,
    PREDICTED,
    Cells,
    halton_cells,
    known_first,
    masked_after,
    pass_sizes,
    radical_inverse,
    random_orders,
    training_masks,
)

FLAT = Cells(spec((CodeLevel(height=1, width=7, codebook_size=5),)))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", ORDERS)
def test_every_order_is_a_permutation_that_keeps_cells_together(name: str, levels: tuple[CodeLevel, ...]) -> None:
    cells = Cells(spec(levels))
    orders = cells.codes(ORDERS[name](cells, [3, 4, 5]))
    n_codes = cells.spec.n_codes
    assert np.array_equal(np.sort(orders, 1), np.tile(np.arange(n_codes), (3, 1)))
    for order in orders:
        for before, after in pairwise(order.tolist()):
            assert (after == before + 1) if cells.depth_T[after] else cells.depth_T[after] == 0
    if name == "raster":
        assert np.array_equal(orders[0], np.arange(n_codes))
    if name == "random" and n_codes > 8:
        assert not np.array_equal(orders[0], orders[1])


def test_the_halton_sequence_is_the_published_one_and_spreads_evenly() -> None:
    assert radical_inverse(6, 2).tolist() == [0, 0.5, 0.25, 0.75, 0.125, 0.625]
    assert radical_inverse(5, 3) == pytest.approx([0, 1 / 3, 2 / 3, 1 / 9, 4 / 9])
    order = halton_cells(8, 8)
    assert order[:4].tolist() == [0, 4 * 8 + 2, 2 * 8 + 5, 6 * 8 + 0]
    assert sorted(order.tolist()) == list(range(64))
    quarters = (order[:16] // 8 // 4) * 2 + (order[:16] % 8) // 4
    assert np.bincount(quarters).min() >= 3, "after a quarter of the codes every quarter of the image has some"


def test_rows_are_permutations_and_the_share_is_kept() -> None:
    orders, raster = random_orders(np.arange(4000), FLAT, 0.25, seed=1), np.arange(7)
    assert np.array_equal(np.sort(orders, 1), np.tile(raster, (4000, 1)))
    assert 0.22 < (orders != raster).any(1).mean() < 0.28
    assert np.array_equal(random_orders(np.arange(50), FLAT, 0.0, seed=1), np.tile(raster, (50, 1)))


def test_every_position_comes_first_equally_often() -> None:
    counts = np.bincount(random_orders(np.arange(7000), FLAT, 1.0, seed=1)[:, 0], minlength=7)
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5, "chi-square of 6 degrees of freedom, 0.1 %"


def test_an_order_and_a_mask_depend_on_their_own_position_and_the_seed_alone() -> None:
    for make in (lambda at, seed: random_orders(at, FLAT, 0.5, seed), lambda at, seed: training_masks(at, FLAT, seed)):
        whole = make(np.arange(100), 1)
        assert np.array_equal(whole, np.concatenate([make(part, 1) for part in np.split(np.arange(100), 4)]))
        assert not np.array_equal(whole, make(np.arange(100), 2))
        assert not np.array_equal(whole, make(np.arange(100, 200), 1))


def test_known_cells_come_first_and_the_order_stays() -> None:
    cells = Cells(spec((CodeLevel(height=1, width=3, codebook_size=5, depth=2),)))
    orders = cells.codes(np.array([[2, 0, 1], [0, 1, 2]]))
    known = np.array([[False, False, True, True, False, False], [True, False, False, False, True, True]])
    assert known_first(orders, known, cells).tolist() == [[2, 3, 4, 5, 0, 1], [4, 5, 0, 1, 2, 3]]


def test_masks_of_training_hide_a_cosine_share_and_predict_what_may_come_next() -> None:
    flat = Cells(spec((CodeLevel(height=8, width=8, codebook_size=5),)))
    masks = training_masks(np.arange(4000), flat, seed=1)
    assert set(np.unique(masks)) == {KNOWN, PREDICTED}
    share = (masks == PREDICTED).mean(1)
    assert share.mean() == pytest.approx(2 / np.pi, abs=0.02) and share.min() > 0
    assert np.quantile(share, 0.5) == pytest.approx(np.cos(np.pi / 4), abs=0.03)
    deep = Cells(spec((CodeLevel(height=4, width=4, codebook_size=5, depth=3),)))
    masks = training_masks(np.arange(500), deep, seed=1).reshape(500, 16, 3)
    kinds = {tuple(cell) for image in masks.tolist() for cell in image}
    assert kinds == {(1, 1, 1), (2, 0, 0), (1, 2, 0), (1, 1, 2)}


@pytest.mark.parametrize("n_unknown", [1, 2, 16, 64, 256])
@pytest.mark.parametrize("passes", [1, 2, 8, 12, 16])
def test_passes_draw_every_code_once_and_at_least_one_each(n_unknown: int, passes: int) -> None:
    sizes = pass_sizes(n_unknown, passes)
    assert sum(sizes) == n_unknown and min(sizes) >= 1 and len(sizes) == min(passes, n_unknown)
    assert pass_sizes(n_unknown, None) == [1] * n_unknown and pass_sizes(0, 4) == []


def test_the_schedule_is_maskgit_s() -> None:
    """What the published formula leaves unknown of 256 codes in 8 and 12 passes: floor(256 cos(pi r / 2))."""
    assert masked_after(256, 8) == [251, 236, 212, 181, 142, 97, 49, 0]
    assert masked_after(256, 12) == [253, 247, 236, 221, 203, 181, 155, 127, 97, 66, 33, 0]
    assert masked_after(4, 8)[:4] == [3, 2, 1, 1], "the published code keeps one for the last pass"


@pytest.mark.parametrize(("n_unknown", "passes"), [(256, 8), (256, 12), (64, 16), (1024, 18)])
def test_the_schedule_is_that_of_diffusers(n_unknown: int, passes: int) -> None:
    """``AmusedScheduler`` with random distributions: as many codes are masked after each pass."""
    import torch
    from diffusers import AmusedScheduler

    scheduler = AmusedScheduler(mask_token_id=50, masking_schedule="cosine")
    scheduler.set_timesteps(passes)
    generator, sample = torch.Generator().manual_seed(0), torch.full((1, n_unknown), 50)
    counts = []
    for step in scheduler.timesteps:
        logits = torch.randn(1, n_unknown, 50, generator=generator)
        sample = scheduler.step(logits, step, sample, generator=generator).prev_sample
        counts.append(int((sample == 50).sum()))
    assert counts == masked_after(n_unknown, passes)
