"""Models that count: exact on small cases, proper distributions, and as good as the truth where the truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import DataError
from foundation.images.config import Preprocess
from stage2_prior.count_models import (
    NeighbourModel,
    NeighbourWeights,
    SparseCounts,
    UnigramModel,
    mean_bits,
    neighbours,
)


def spec(*levels: CodeLevel) -> CodeSpec:
    preprocess = Preprocess(height=4 * levels[-1].height, width=4 * levels[-1].width)
    return CodeSpec(levels=levels, stride=4, preprocess=preprocess, fingerprint="f")


def one_level(height: int, width: int, size: int) -> CodeSpec:
    return spec(CodeLevel(height=height, width=width, codebook_size=size))


TWO_BY_TWO = one_level(2, 2, 3)
SLOTS = spec(CodeLevel(height=1, width=2, codebook_size=4), CodeLevel(height=2, width=4, codebook_size=6, depth=2))


def random_codes(of: CodeSpec, n: int, seed: int = 0) -> np.ndarray:
    from foundation.codes.spec import code_positions

    sizes = code_positions(of).codebook_size_T
    return (np.random.default_rng(seed).random((n, of.n_codes)) * sizes).astype(np.uint16)


def test_neighbours_are_the_codes_left_and_above_and_the_edge_is_one_more() -> None:
    found = neighbours(np.array([[[0, 1, 2], [2, 0, 1]]]), 3)
    assert found.code.tolist() == [0, 1, 2, 2, 0, 1]
    assert found.left.tolist() == [3, 0, 1, 3, 2, 0]
    assert found.up.tolist() == [3, 3, 3, 0, 1, 2]


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(-1, 21), min_size=1))
def test_sparse_counts_count(numbers: list[int], wanted: list[int]) -> None:
    counts = SparseCounts.of(np.array(numbers, np.int64))
    assert counts.look_up(np.array(wanted)).tolist() == [numbers.count(each) for each in wanted]


def test_the_unigram_model_is_exact_on_a_case_done_by_hand() -> None:
    """Eight codes of three: 0 five times, 1 three times, 2 never; each counts one half more."""
    model = UnigramModel.fit(np.array([[0, 0, 0, 1], [0, 1, 0, 1]]), TWO_BY_TWO)
    probs = 2.0 ** -model.bits(np.array([[0, 1, 2, 0]]))
    assert probs[0] == pytest.approx([5.5 / 9.5, 3.5 / 9.5, 0.5 / 9.5, 5.5 / 9.5])


def test_the_neighbour_model_is_exact_on_a_case_done_by_hand() -> None:
    """Two grids, [[0, 1], [1, 0]] and [[0, 1], [1, 1]], and weights that are given."""
    codes = np.array([[0, 1, 1, 0], [0, 1, 1, 1]])
    fitted = NeighbourModel.fit(codes, TWO_BY_TWO)
    model = NeighbourModel(
        TWO_BY_TWO, fitted._counts, [NeighbourWeights(left=2.0, up=1.0, left_share=0.25, pair=4.0)], 2
    )
    alone = np.array([3.5, 5.5, 0.5]) / 9.5  # 0 three times, 1 five times
    by_left = (np.array([1, 1, 0]) + 2 * alone) / (2 + 2)  # the last place: left of it is 1, twice; then 0 and 1
    by_up = (np.array([1, 1, 0]) + 1 * alone) / (2 + 1)  # above it is 1, twice
    expected = (np.array([1, 1, 0]) + 4 * (0.25 * by_left + 0.75 * by_up)) / (2 + 4)
    grids = np.array([[0, 1, 1, code] for code in range(3)])
    assert 2.0 ** -model.bits(grids)[:, 3] == pytest.approx(expected)
    corner = (
        np.array([2, 0, 0])
        + 4 * ((np.array([2, 2, 0]) + 2 * alone) / 6 * 0.25 + (np.array([2, 2, 0]) + 1 * alone) / 5 * 0.75)
    ) / 6
    first = np.array([[code, 1, 1, 0] for code in range(3)])
    assert 2.0 ** -model.bits(first)[:, 0] == pytest.approx(corner)


@pytest.mark.parametrize("of", [TWO_BY_TWO, one_level(3, 5, 7), SLOTS])
@pytest.mark.parametrize("fit", [UnigramModel.fit, NeighbourModel.fit])
def test_probabilities_sum_to_one_at_every_place(of: CodeSpec, fit) -> None:  # type: ignore[no-untyped-def]
    """Also beside neighbours that were never seen."""
    from foundation.codes.spec import code_positions

    model = fit(random_codes(of, 40), of)
    sizes = code_positions(of).codebook_size_T
    for row in random_codes(of, 5, seed=1):
        for t, size in enumerate(sizes):
            grids = np.repeat(row[None], size, axis=0)
            grids[:, t] = np.arange(size)
            assert (2.0 ** -model.bits(grids)[:, t]).sum() == pytest.approx(1)


def markov_grids(n: int, side: int, size: int, seed: int) -> tuple[np.ndarray, float]:
    """Codes that are (left + up + noise) mod size, the noise 0 with chance 0.7; and the true bits per code.

    Beyond the edges stands 0.
    """
    rng = np.random.default_rng(seed)
    probs = np.full(size, 0.3 / (size - 1))
    probs[0] = 0.7
    noise = rng.choice(size, (n, side, side), p=probs)
    codes = np.zeros((n, side + 1, side + 1), int)
    for y in range(side):
        for x in range(side):
            codes[:, y + 1, x + 1] = (codes[:, y + 1, x] + codes[:, y, x + 1] + noise[:, y, x]) % size
    return codes[:, 1:, 1:].reshape(n, -1), float(-(probs * np.log2(probs)).sum())


def test_on_a_known_markov_grid_the_neighbour_model_reaches_the_true_entropy() -> None:
    of = one_level(6, 6, 8)
    train, entropy = markov_grids(3000, 6, 8, seed=0)
    held_out, _ = markov_grids(1000, 6, 8, seed=1)
    neighbour, unigram = NeighbourModel.fit(train, of), UnigramModel.fit(train, of)
    assert entropy - 0.02 < mean_bits(neighbour, held_out) < entropy + 0.02
    assert mean_bits(unigram, held_out) > entropy + 0.8, "this rule cannot be seen without the neighbours"
    few = [mean_bits(NeighbourModel.fit(train[:n], of), held_out) for n in (10, 100, 1000)]
    assert few[0] > few[1] > few[2] > entropy - 0.02


def test_it_backs_off_where_neighbours_say_nothing() -> None:
    """Independent codes: a model that trusted its sparse counts would do far worse than the frequencies."""
    of = one_level(4, 4, 64)
    rng = np.random.default_rng(0)
    probs = 1 / np.arange(1, 65)
    codes = rng.choice(64, (1200, 16), p=probs / probs.sum())
    entropy = -(probs / probs.sum() * np.log2(probs / probs.sum())).sum()
    model = NeighbourModel.fit(codes[:1000], of)
    assert mean_bits(model, codes[1000:]) < mean_bits(UnigramModel.fit(codes[:1000], of), codes[1000:]) + 0.03
    assert mean_bits(model, codes[1000:]) > entropy - 0.15
    assert model.weights[0].pair > 100


def test_a_rule_along_one_side_is_learned_from_that_side() -> None:
    of = one_level(4, 4, 16)
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, 16, (600, 4, 1)) + np.arange(4)) % 16  # each row counts up from a random start
    codes = rows.reshape(600, 16)
    model = NeighbourModel.fit(codes[:500], of)
    assert model.weights[0].left_share > 0.9
    bits = model.bits(codes[500:]).mean(0).reshape(4, 4)
    assert bits[:, 1:].max() < 0.2 and bits[:, 0].min() > 3.5


def test_slots_are_counted_apart() -> None:
    coarse, fine = np.zeros((50, 1, 2), int), np.random.default_rng(0).integers(0, 6, (50, 2, 4, 2))
    fine[..., 1] = 5
    codes = SLOTS.join([coarse, fine])
    for model in (UnigramModel.fit(codes, SLOTS), NeighbourModel.fit(codes, SLOTS)):
        top, bottom = SLOTS.split(model.bits(codes))
        assert top.max() < 0.1 and bottom[..., 1].max() < 0.1
        assert 2.0 < bottom[..., 0].mean() < 3.0


def test_a_large_codebook_is_counted_sparsely() -> None:
    """16,384 codes: a table of pairs of neighbours alone would have 268 million rows."""
    of = one_level(8, 8, 16_384)
    train, _ = markov_grids(200, 8, 16_384, seed=0)
    model = NeighbourModel.fit(train, of)
    assert 0 < mean_bits(model, train[:20]) < 14


def test_a_larger_set_is_counted_at_even_distances() -> None:
    codes = random_codes(TWO_BY_TWO, 1000)
    assert NeighbourModel.fit(codes, TWO_BY_TWO).n_rows == 1000
    assert NeighbourModel.fit(codes, TWO_BY_TWO, max_codes=800).n_rows == 200


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30))
def test_any_number_of_rows_will_do(n_rows: int) -> None:
    codes = random_codes(SLOTS, n_rows, seed=n_rows)
    assert np.isfinite(NeighbourModel.fit(codes, SLOTS).bits(codes)).all()


def test_a_memory_mapped_set_gives_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    codes = random_codes(TWO_BY_TWO, 5000)
    mapped = np.memmap(tmp_path / "codes", np.uint16, "w+", shape=codes.shape)
    mapped[:] = codes
    for fit in (UnigramModel.fit, NeighbourModel.fit):
        assert mean_bits(fit(mapped, TWO_BY_TWO), mapped) == mean_bits(fit(codes, TWO_BY_TWO), codes)


def test_what_cannot_be_counted_is_refused() -> None:
    empty = np.zeros((0, 4), int)
    for fit in (UnigramModel.fit, NeighbourModel.fit):
        with pytest.raises(DataError, match="no codes"):
            fit(empty, TWO_BY_TWO)
        with pytest.raises(DataError, match=r"3\.\.3(.|\n)*0\.\.2"):
            fit(np.array([[0, 1, 2, 3]]), TWO_BY_TWO)
        with pytest.raises(DataError, match="specification"):
            fit(np.zeros((2, 5), int), TWO_BY_TWO)
    with pytest.raises(DataError, match=r"2097152(.|\n)*1,048,576"):
        NeighbourModel.fit(np.zeros((1, 4), int), one_level(2, 2, 1 << 21))
