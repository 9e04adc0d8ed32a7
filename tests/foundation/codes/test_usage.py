import math

import numpy as np
import pytest

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.codes.usage import count_codes, count_codes_by_slot, summarize
from foundation.errors import DataError
from foundation.images.config import Preprocess

TWO = CodeSpec(
    levels=(CodeLevel(height=1, width=1, codebook_size=4), CodeLevel(height=1, width=2, codebook_size=10, depth=2)),
    stride=4,
    preprocess=Preprocess(height=4, width=8),
    fingerprint="f",
)


def test_each_slot_is_counted_for_itself() -> None:
    codes = np.array([[0, 7, 1, 8, 1], [1, 9, 2, 9, 2]], np.uint16)
    top, first, second = count_codes_by_slot(codes, TWO)
    assert top.counts_V.tolist() == [1, 1, 0, 0]
    assert np.flatnonzero(first.counts_V).tolist() == [7, 8, 9] and first.counts_V.sum() == 4
    assert np.flatnonzero(second.counts_V).tolist() == [1, 2] and len(second.counts_V) == 10
    summary = summarize([top, first, second])
    assert summary.share_used == (2 + 3 + 2) / (4 + 10 + 10)
    assert summary.entropy_bits == pytest.approx((2 * 1.0 + 4 * 1.5 + 4 * 1.0) / 10)
    assert summary.perplexity == pytest.approx(2**summary.entropy_bits)


def test_one_slot_is_what_count_codes_says() -> None:
    one = CodeSpec(
        levels=(CodeLevel(height=2, width=2, codebook_size=6),),
        stride=4,
        preprocess=Preprocess(height=8, width=8),
        fingerprint="f",
    )
    codes = np.random.default_rng(0).integers(0, 5, (50, 4))
    (usage,) = count_codes_by_slot(codes, one)
    assert np.array_equal(usage.counts_V, count_codes(codes, 6).counts_V)
    summary = summarize([usage])
    assert (summary.share_used, summary.entropy_bits) == (usage.share_used, pytest.approx(usage.entropy_bits))
    assert summary.share_used == 5 / 6 and 2.2 < summary.entropy_bits <= math.log2(5)


def test_no_codes_use_nothing_and_wrong_ones_are_refused() -> None:
    summary = summarize(count_codes_by_slot(np.zeros((0, 5), int), TWO))
    assert (summary.share_used, summary.entropy_bits, summary.perplexity) == (0.0, 0.0, 1.0)
    with pytest.raises(DataError, match="position 0"):
        count_codes_by_slot(np.full((2, 5), 4), TWO)
