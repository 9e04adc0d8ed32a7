"""Shares of an evaluation: every example once, in chunks that do not depend on the number of processes."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from foundation.training.shares import Share, chosen_examples, read_ahead

CPU = torch.device("cpu")


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize(("n_examples", "size"), [(0, 4), (3, 4), (17, 4), (64, 8)])
def test_processes_score_the_chunks_of_one_process(world: int, n_examples: int, size: int) -> None:
    alone = Share().chunks(n_examples, size)
    assert [i for each in alone for i in range(n_examples)[each]] == list(range(n_examples))
    together = [each for rank in range(world) for each in Share(rank, world, CPU).chunks(n_examples, size)]
    assert sorted(together, key=lambda each: each.start) == alone


def test_a_limit_takes_a_fixed_choice_and_a_smaller_one_is_part_of_a_larger_one() -> None:
    few, more = chosen_examples(1000, 50), chosen_examples(1000, 200)
    assert np.array_equal(few, chosen_examples(1000, 50)) and len(np.unique(few)) == 50
    assert (np.diff(few) > 0).all() and set(few) < set(more)
    assert 300 < few.mean() < 700, "from the whole set, which may be sorted by class"
    assert np.array_equal(chosen_examples(5, None), chosen_examples(5, 5))


def test_a_chunk_is_read_while_the_one_before_is_worked_on() -> None:
    read = [threading.Event() for _ in range(4)]

    def act(chunk: slice) -> int:
        read[chunk.start].set()
        return chunk.start

    found: Iterator[tuple[slice, int]] = read_ahead(act, [slice(i, i + 1) for i in range(4)])
    for i, (chunk, value) in enumerate(found):
        assert (chunk.start, value) == (i, i)
        assert i == 3 or read[i + 1].wait(10)
    assert list(read_ahead(act, [])) == []


def test_an_error_of_reading_reaches_the_caller() -> None:
    def fail(chunk: slice) -> None:
        raise OSError(f"chunk {chunk.start}")

    with pytest.raises(OSError, match="chunk 0"):
        next(read_ahead(fail, [slice(0, 1), slice(1, 2)]))


def test_one_process_has_its_own_values() -> None:
    share, rows = Share(), np.arange(6.0).reshape(3, 2)
    assert np.array_equal(share.joined(rows), rows)
    assert np.array_equal(share.rows_of_all(rows)[0], rows) and share.decided(0.25) == 0.25
