"""Figures equal torch-fidelity's and torchmetrics' on equal features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluation.bootstrap import frechet_figure, kernel_figure, resampling_weights
from pipeline.evaluation.distances import FeatureMoments, frechet_distance
from pipeline.evaluation.inception_score import inception_figure, inception_scores, probabilities
from pipeline.evaluation.manifold import overlap

N, F, K = 400, 24, 12
EXACT = 1e-6


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(F, F))
    one, other = rng.normal(size=(N, F)) @ mix, rng.normal(0.3, 1.2, size=(N, F)) @ mix
    return one.astype(np.float32), other.astype(np.float32)


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, K)).astype(np.float32) * 3


def ours(sets: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    weights = resampling_weights(N, 5, "test")
    moments = [FeatureMoments(F), FeatureMoments(F)]
    for each, features in zip(moments, sets, strict=True):
        each.update(features)
    frechet, kernel = frechet_figure(*sets, weights, weights).value, kernel_figure(*sets, weights, weights).value
    assert frechet == pytest.approx(frechet_distance(*moments), rel=1e-9)
    return {"frechet": frechet, "kernel": kernel}


def test_distances_and_overlap_are_those_of_torch_fidelity(sets: tuple[np.ndarray, np.ndarray]) -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason="needs torch-fidelity")
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    one, other = (torch.from_numpy(each).double() for each in sets)
    found = ours(sets)
    statistics = [fid.fid_features_to_statistics(each) for each in (one, other)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found["frechet"] == pytest.approx(expected, rel=EXACT)
    whole = {"kid_subsets": 1, "kid_subset_size": N, "verbose": False}
    expected = kid_features_to_metric(one, other, **whole)["kernel_inception_distance_mean"]
    assert found["kernel"] == pytest.approx(expected, rel=EXACT)
    expected = prc_features_to_metric(one, other, verbose=False)
    shared = overlap(*sets)
    assert 0 < shared.precision < 1 and 0 < shared.recall < 1
    assert shared.precision == pytest.approx(expected["precision"], rel=EXACT)
    assert shared.recall == pytest.approx(expected["recall"], rel=EXACT)


@pytest.mark.parametrize("n_splits", [1, 10])
def test_the_inception_score_is_that_of_torch_fidelity(logits: np.ndarray, n_splits: int) -> None:
    isc = pytest.importorskip("torch_fidelity.metric_isc", reason="needs torch-fidelity")
    expected = isc.isc_features_to_metric(torch.from_numpy(logits), splits=n_splits, shuffle=False)
    found = inception_scores(probabilities(logits), n_splits)
    assert found.mean() == pytest.approx(expected["inception_score_mean"], rel=EXACT)
    assert found.std() == pytest.approx(expected["inception_score_std"], rel=EXACT, abs=1e-12)


class Given(nn.Module):
    """The features, where torchmetrics expects a network that makes them from images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_figures_are_those_of_torchmetrics(sets: tuple[np.ndarray, np.ndarray], logits: np.ndarray) -> None:
    image: Any = pytest.importorskip("torchmetrics.image", reason="needs torchmetrics")
    one, other = (torch.from_numpy(each).double() for each in sets)
    found = ours(sets)
    frechet = image.FrechetInceptionDistance(feature=Given(F), normalize=False).set_dtype(torch.float64)
    kernel = image.KernelInceptionDistance(feature=Given(F), subsets=1, subset_size=N)
    for metric in (frechet, kernel):
        metric.update(other, real=True)
        metric.update(one, real=False)
    assert found["frechet"] == pytest.approx(float(frechet.compute()), rel=EXACT)
    assert found["kernel"] == pytest.approx(float(kernel.compute()[0]), rel=EXACT)
    score = image.InceptionScore(feature=Given(K), splits=1)
    score.update(torch.from_numpy(logits).double())
    weights = resampling_weights(N, 5, "test")
    expected = float(score.compute()[0])  # it shuffles images, which one split does not see
    assert inception_figure(probabilities(logits), weights).value == pytest.approx(expected, rel=EXACT)
