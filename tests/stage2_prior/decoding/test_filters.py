"""top-k and top-p of both kinds find what sorting the probabilities by hand finds."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from stage2_prior.decoding.filters import DigitFilters, Filters, SortingFilters
from stage2_prior.decoding.probs import filters_for

CPU = torch.device("cpu")
KINDS: dict[str, Callable[[int, int], Filters]] = {
    "sorting": SortingFilters,
    "digits": lambda n_rows, n_codes: DigitFilters(n_rows, n_codes, CPU),
}
each_kind = pytest.mark.parametrize("kind", list(KINDS))


def sorted_top_k(row: list[float], k: int) -> list[bool]:
    least = sorted(row, reverse=True)[min(k, len(row)) - 1]
    return [each >= least for each in row]


def sorted_top_p(row: torch.Tensor, p: float) -> list[bool]:
    """Up to and including the one at which the sum reaches p, less a rounding, and whatever is as likely."""
    ordered = row.double().sort(descending=True).values
    reached = (ordered.cumsum(0) >= p * float(row.double().sum()) * (1 - 2.0**-23)).nonzero()
    least = ordered[int(reached[0]) if len(reached) else -1]
    return (row >= least).tolist()


def probs(seed: int, rows: int, size: int, spread: float, levels: int) -> torch.Tensor:
    """Probabilities; with few levels many are tied."""
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * spread
    return (logits if levels == 0 else (logits * levels).round() / levels).softmax(1)


FOUND = {
    "seed": st.integers(0, 2**31),
    "size": st.integers(1, 300),
    "spread": st.floats(0, 40),
    "levels": st.sampled_from([0, 0, 1, 3]),
}


@each_kind
@settings(max_examples=200, deadline=None, derandomize=True)
@given(k=st.integers(1, 320), **FOUND)
def test_top_k_keeps_what_sorting_keeps(kind: str, seed: int, size: int, spread: float, levels: int, k: int) -> None:
    before = probs(seed, 3, size, spread, levels)
    after = KINDS[kind](3, size).keep_top_k(before.clone(), k)
    for row, kept in zip(before, after, strict=True):
        expected = torch.tensor(sorted_top_k(row.tolist(), k))
        assert torch.equal(kept, row * expected)


@each_kind
@settings(max_examples=200, deadline=None, derandomize=True)
@given(p=st.floats(1e-9, 1) | st.sampled_from([1e-300, 0.5, 1 - 1e-7]), **FOUND)
def test_top_p_keeps_what_sorting_keeps(kind: str, seed: int, size: int, spread: float, levels: int, p: float) -> None:
    before = probs(seed, 3, size, spread, levels)
    after = KINDS[kind](3, size).keep_top_p(before.clone(), p)
    for row, kept in zip(before, after, strict=True):
        expected = torch.tensor(sorted_top_p(row, p)) if p < 1 else row >= 0
        assert torch.equal(kept, row * expected)
        assert (kept > 0).any()


@each_kind
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_a_whole_vocabulary(kind: str, spread: float) -> None:
    before = probs(1, 2, 16384, spread, 0)
    filters = KINDS[kind](2, 16384)
    for k in (1, 2, 100, 2000, 16383, 16384):
        kept = filters.keep_top_k(before.clone(), k) > 0
        least = before.sort(1, descending=True).values[:, k - 1 : k]
        assert torch.equal(kept, (before >= least) & (before > 0))
    for p in (0.01, 0.5, 0.95, 0.999):
        kept = filters.keep_top_p(before.clone(), p) > 0
        assert kept.tolist() == [sorted_top_p(row, p) for row in before]


@each_kind
def test_memory_for_more_serves_less(kind: str) -> None:
    filters, before = KINDS[kind](3, 500), probs(5, 3, 77, 2.0, 0)
    filters.keep_top_p(probs(6, 3, 500, 2.0, 0), 0.5)
    assert torch.equal(filters.keep_top_k(before.clone(), 10), KINDS[kind](3, 77).keep_top_k(before.clone(), 10))


def test_the_kind_for_a_cpu_is_the_fast_one() -> None:
    assert isinstance(filters_for(1, 10, CPU), SortingFilters)
