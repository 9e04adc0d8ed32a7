import math
import tracemalloc

import numpy as np
import pytest

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.codes.usage import CodeUsage, UsageCounter, count_codes, count_codes_by_slot, summarize, total_usage
from foundation.errors import DataError
from foundation.images.config import Preprocess

TWO = CodeSpec(
    levels=(CodeLevel(height=1, width=1, codebook_size=4), CodeLevel(height=1, width=2, codebook_size=10, depth=2)),
    stride=4,
    preprocess=Preprocess(height=4, width=8),
    fingerprint="f",
)


def counts(usage: CodeUsage) -> dict[int, int]:
    return dict(zip(usage.codes_U.tolist(), usage.counts_U.tolist(), strict=True))


def test_each_slot_is_counted_for_itself() -> None:
    codes = np.array([[0, 7, 1, 8, 1], [1, 9, 2, 9, 2]], np.uint16)
    top, first, second = count_codes_by_slot(codes, TWO)
    assert (top.codes_U.tolist(), top.counts_U.tolist(), top.codebook_size) == ([0, 1], [1, 1], 4)
    assert (first.codes_U.tolist(), first.n_codes) == ([7, 8, 9], 4)
    assert (second.codes_U.tolist(), second.codebook_size) == ([1, 2], 10)
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
    assert counts(usage) == counts(count_codes(codes, 6)) == dict(enumerate(np.bincount(codes.reshape(-1)).tolist()))
    summary = summarize([usage])
    assert (summary.share_used, summary.entropy_bits) == (usage.share_used, pytest.approx(usage.entropy_bits))
    assert summary.share_used == 5 / 6 and 2.2 < summary.entropy_bits <= math.log2(5)


def test_no_codes_use_nothing_and_wrong_ones_are_refused() -> None:
    summary = summarize(count_codes_by_slot(np.zeros((0, 5), int), TWO))
    assert (summary.share_used, summary.entropy_bits, summary.perplexity) == (0.0, 0.0, 1.0)
    with pytest.raises(DataError, match="position 0"):
        count_codes_by_slot(np.full((2, 5), 4), TWO)


@pytest.mark.parametrize("codebook_size", [30, 100_000])
def test_parts_add_up_to_the_whole_whether_sorted_or_counted_by_entry(codebook_size: int) -> None:
    codes = np.random.default_rng(0).integers(0, 30, (40, 7)) * (codebook_size // 30)
    found, expected = np.unique(codes, return_counts=True)
    whole = dict(zip(found.tolist(), expected.tolist(), strict=True))
    parts = [count_codes(part, codebook_size) for part in np.array_split(codes, 9)]
    assert counts(total_usage(parts)) == counts(count_codes(codes, codebook_size)) == whole
    assert counts(parts[0] + parts[1]) == counts(count_codes(codes[:10], codebook_size))
    assert (np.diff(total_usage(parts).codes_U) > 0).all()


def test_a_codebook_of_2_to_the_27_takes_no_more_than_the_codes_that_are_seen() -> None:
    level = CodeLevel(height=16, width=16, codebook_size=2**27)
    large = CodeSpec(levels=(level,), stride=4, preprocess=Preprocess(height=64, width=64), fingerprint="f")
    codes = np.random.default_rng(0).integers(0, 2**27, (200, 256))
    counter = UsageCounter(large)
    tracemalloc.start()
    for start in range(0, 200, 20):
        counter.add(codes[start : start + 20])
    (usage,) = counter.usages()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20, "51,200 codes of 8 bytes, some copies"
    assert usage.n_codes == 51_200 and usage.entropy_bits == pytest.approx(math.log2(51_200), abs=0.01)
    assert usage.share_used == len(np.unique(codes)) / 2**27
