"""Precision, recall, density and coverage: their definitions and their limits."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.errors import ConfigError, DataError
from pipeline.evaluation import nearest
from pipeline.evaluation.manifold import overlap

RNG = np.random.default_rng(0)
REAL, SAME = RNG.normal(size=(200, 6)), RNG.normal(size=(180, 6))


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.array(np.sqrt(np.square(one[:, None] - other[None]).sum(2)))


def test_figures_follow_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_BLOCK_BYTES", 8 * 200 * 50)
    shifted = SAME + 0.7
    shared = overlap(shifted, REAL, k=3, density_k=5)
    radius_real = {k: np.sort(distances(REAL, REAL), 1)[:, k] for k in (3, 5)}
    radius_sample = np.sort(distances(shifted, shifted), 1)[:, 3]
    between = distances(shifted, REAL)
    assert shared.precision == pytest.approx((between <= radius_real[3]).any(1).mean())
    assert shared.recall == pytest.approx((between <= radius_sample[:, None]).any(0).mean())
    assert shared.density == pytest.approx((between <= radius_real[5]).sum() / (5 * len(shifted)))
    assert shared.coverage == pytest.approx((between.min(0) <= radius_real[5]).mean())


def test_sets_of_one_distribution_overlap_and_distant_sets_do_not() -> None:
    alike = overlap(SAME, REAL)
    assert min(alike.precision, alike.recall, alike.coverage) > 0.75 and alike.density == pytest.approx(1, abs=0.25)
    apart = overlap(SAME + 100, REAL)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)


def test_an_outlier_spoils_recall_and_precision_but_not_density_and_coverage() -> None:
    outlier = np.concatenate([REAL, np.full((1, 6), 30.0)])
    distant = SAME + 12
    assert overlap(distant, outlier).precision > 0.9
    assert overlap(distant, outlier).density < 0.5 and overlap(distant, outlier).coverage < 0.02


def test_collapse_lowers_recall_and_coverage_alone() -> None:
    collapsed = np.repeat(SAME[:10], 18, 0) + RNG.normal(0, 1e-3, (180, 6))
    shared = overlap(collapsed, REAL)
    assert shared.precision > 0.7 and shared.recall < 0.05 and shared.coverage < 0.4


def test_bad_sets_are_refused() -> None:
    with pytest.raises(DataError, match="6 or more"):
        overlap(SAME[:5], REAL)
    with pytest.raises(DataError, match="differ in length"):
        overlap(SAME[:, :3], REAL)
    with pytest.raises(ConfigError, match="k: "):
        overlap(SAME, REAL, k=0)
