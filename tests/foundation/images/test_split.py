"""The held-out part is a function of ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.images.split import held_out

IDS = [f"{i:05d}.png" for i in range(4000)]


def test_the_share_is_kept_and_nested() -> None:
    tenth, fifth = held_out(IDS, 0.1), held_out(IDS, 0.2)
    assert 0.08 < tenth.mean() < 0.12 and 0.17 < fifth.mean() < 0.23
    assert (fifth | ~tenth).all(), "what a tenth holds out, a fifth holds out too"


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 3999), min_size=500, max_size=600), st.randoms(use_true_random=False))
def test_adding_removing_and_reordering_moves_no_image(numbers: set[int], random: object) -> None:
    some = [IDS[i] for i in numbers]
    random.shuffle(some)  # type: ignore[attr-defined]
    whole = dict(zip(IDS, held_out(IDS, 0.1), strict=True))
    assert dict(zip(some, held_out(some, 0.1), strict=True)) == {name: whole[name] for name in some}


def test_every_class_keeps_an_image_for_training() -> None:
    labels = np.arange(60) // 2
    held = held_out(IDS[:60], 0.6, labels)
    assert held.any() and {*labels[~held].tolist()} == set(range(30))


def test_an_earlier_decision_is_kept() -> None:
    known = {name: i % 2 == 0 for i, name in enumerate(IDS[:20])}
    held = held_out(IDS[:40], 0.1, known=known)
    assert held[:20].tolist() == [known[name] for name in IDS[:20]]


@pytest.mark.parametrize("n, labels", [(0, None), (1, None), (3, [0, 1, 2])])
def test_too_few_images_are_refused(n: int, labels: list[int] | None) -> None:
    with pytest.raises(DataError, match="too few images"):
        held_out(IDS[:n], 0.1, None if labels is None else np.array(labels))


def test_two_images_are_one_of_each() -> None:
    assert held_out(["a", "b"], 0.1).sum() == 1 == held_out(["a", "b"], 0.99).sum()
