import warnings

import numpy as np
import pytest

from foundation.errors import DataError
from pipeline.evaluation.distances import FeatureMoments, frechet_distance, gaussian_frechet_distance


def features(n: int = 500, width: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(3.0, 1.0, (n, width)) @ rng.normal(size=(width, width))


def moments(features_BF: np.ndarray, batch: int = 64) -> FeatureMoments:
    result = FeatureMoments(features_BF.shape[1])
    for start in range(0, len(features_BF), batch):
        result.update(features_BF[start : start + batch])
    return result


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_streaming_equals_all_at_once(batch: int) -> None:
    values = features()
    found = moments(values, batch)
    assert found.n == 500
    np.testing.assert_allclose(found.mean_F, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(values.T), rtol=1e-10)


def test_a_large_mean_costs_no_digits() -> None:
    values = np.random.default_rng(0).normal(0, 1, (400, 5))
    np.testing.assert_allclose(moments(values + 1e8).covariance, np.cov(values.T), atol=1e-6)


def test_diagonal_gaussians_follow_the_closed_form() -> None:
    one, other = np.array([1.0, 4.0, 0.0]), np.array([9.0, 4.0, 2.0])
    expected = (0.5**2) * 3 + ((np.sqrt(one) - np.sqrt(other)) ** 2).sum()
    found = gaussian_frechet_distance(np.zeros(3), np.diag(one), np.full(3, 0.5), np.diag(other))
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_set_is_at_distance_zero_from_itself_and_the_distance_is_symmetric() -> None:
    one, other = moments(features()), moments(features(seed=1))
    scale = np.trace(one.covariance)
    assert frechet_distance(one, one) < 1e-12 * scale
    assert frechet_distance(one, other) > 1
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-10)


def test_equals_the_matrix_square_root() -> None:
    """The textbook way, from another algorithm: eigenvalues of the product, which are real and not negative."""
    one, other = moments(features()), moments(features(seed=1))
    product = np.linalg.eigvals(one.covariance @ other.covariance).real
    root = np.sqrt(product.clip(min=0)).sum()
    expected = np.square(one.mean_F - other.mean_F).sum()
    expected += np.trace(one.covariance) + np.trace(other.covariance) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_are_exact_and_warned_about() -> None:
    few = moments(features(n=10, width=40))
    with pytest.warns(UserWarning, match="10 images and 40 features"):
        assert frechet_distance(few, few) < 1e-10 * np.trace(few.covariance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough = moments(features(n=41, width=40))
        frechet_distance(enough, enough)


def test_bad_input_is_refused() -> None:
    state = FeatureMoments(3)
    with pytest.raises(DataError, match="at least 2"):
        frechet_distance(state, state)
    with pytest.raises(DataError, match=r"\(B, 3\)"):
        state.update(np.zeros((2, 4)))
    with pytest.raises(DataError, match="not finite"):
        state.update(np.full((2, 3), np.nan))
    with pytest.raises(DataError, match="3 and 4"):
        frechet_distance(state, FeatureMoments(4))
    with pytest.raises(DataError, match="not finite"):
        gaussian_frechet_distance(np.zeros(1), np.full((1, 1), np.inf), np.zeros(1), np.eye(1))
    state.update(np.empty((0, 3)))
    assert state.n == 0
