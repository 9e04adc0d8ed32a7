from types import SimpleNamespace

import numpy as np
import pytest

from foundation.errors import DataError
from foundation.randomness import DataOrder
from stage2_prior.data import CodeExamples

DATASET = SimpleNamespace(codes_NT=np.arange(4000).reshape(1000, 4), labels_N=np.arange(1000) % 5, grids_N=None)

N_IMAGES, N_VIEWS = 600, 4
IMAGES_N = np.concatenate([np.tile(np.arange(400), N_VIEWS), np.tile(np.arange(400, 600), N_VIEWS)])
VIEWS_N = np.concatenate([np.repeat(range(N_VIEWS), 400), np.repeat(range(N_VIEWS), 200)])
VIEWS = SimpleNamespace(
    codes_NT=np.stack([IMAGES_N, VIEWS_N], 1),
    labels_N=IMAGES_N % 5,
    views_N=VIEWS_N,
    grids_N=None,
    rows_by_shard=(1600, 800),
)
"""Four views of 600 images in two shards; the codes say which image and view a row is."""


def test_label_dropout_is_keyed_by_sample_and_epoch() -> None:
    examples = CodeExamples(DATASET, 5, label_dropout=0.3, seed=1)  # type: ignore[arg-type]
    everything, epoch = np.arange(1000), np.zeros(1000, int)
    first = examples.batch(everything, epoch)["labels"]
    assert 0.25 < (first == 5).double().mean() < 0.35
    shuffled = np.random.default_rng(0).permutation(1000)
    assert (examples.batch(shuffled, epoch)["labels"] == first[shuffled]).all(), "not by place in the batch"
    assert not (examples.batch(everything, epoch + 1)["labels"] == first).all()


def test_an_unconditional_prior_gets_the_null_class() -> None:
    batch = CodeExamples(DATASET, 0, label_dropout=0.3).batch(np.arange(4), np.zeros(4, int))  # type: ignore[arg-type]
    assert batch["labels"].tolist() == [0, 0, 0, 0]
    assert batch["tokens"].dtype.is_signed and batch["tokens"].shape == (4, 4)


def test_all_views_are_examples_of_their_own_unless_asked_otherwise() -> None:
    examples = CodeExamples(VIEWS, 5)  # type: ignore[arg-type]
    assert len(examples) == N_IMAGES * N_VIEWS
    batch = examples.batch(np.arange(2400), np.zeros(2400, int))
    assert np.array_equal(batch["tokens"], VIEWS.codes_NT) and np.array_equal(batch["labels"], VIEWS.labels_N)


def test_one_view_of_every_image_is_drawn_in_every_epoch() -> None:
    examples = CodeExamples(VIEWS, 5, views="one", seed=2)  # type: ignore[arg-type]
    assert len(examples) == N_IMAGES
    order = DataOrder(len(examples), seed=0)
    drawn = np.empty((40, N_IMAGES), int)
    for epoch in range(40):
        batch = examples.batch(*order.at(np.arange(epoch * N_IMAGES, (epoch + 1) * N_IMAGES)))
        image, view = batch["tokens"].numpy().T
        assert sorted(image) == list(range(N_IMAGES)), "an epoch passes over the images, each once"
        assert np.array_equal(batch["labels"], image % 5)
        drawn[epoch, image] = view
    counts = np.bincount(drawn.reshape(-1), minlength=N_VIEWS)
    assert np.abs(counts - drawn.size / N_VIEWS).max() < 5 * (drawn.size / N_VIEWS) ** 0.5
    same_again = (drawn[1:] == drawn[:-1]).mean()
    assert abs(same_again - 1 / N_VIEWS) < 0.02, "the epochs are unrelated"
    assert not np.array_equal(drawn[0], _views(CodeExamples(VIEWS, 5, views="one", seed=3)))  # type: ignore[arg-type]
    alone = [int(examples.batch(np.array([i]), np.array([7]))["tokens"][0, 1]) for i in range(0, N_IMAGES, 50)]
    assert alone == drawn[7, ::50].tolist(), "whatever else is in the batch"


def test_label_dropout_is_that_of_the_image_whatever_its_view() -> None:
    one = CodeExamples(VIEWS, 5, views="one", label_dropout=0.5, seed=1)  # type: ignore[arg-type]
    everything, epoch = np.arange(N_IMAGES), np.zeros(N_IMAGES, int)
    dropped = one.batch(everything, epoch)["labels"].numpy() == 5
    assert np.array_equal(one.batch(everything, epoch)["labels"] == 5, dropped) and 0.4 < dropped.mean() < 0.6


def test_images_of_unequal_views_cannot_be_drawn_from() -> None:
    wrong = SimpleNamespace(**{**vars(VIEWS), "views_N": np.where(np.arange(2400) == 2399, 2, VIEWS_N)})
    with pytest.raises(DataError, match="one view of each image cannot be sampled"):
        CodeExamples(wrong, 5, views="one")  # type: ignore[arg-type]
    assert len(CodeExamples(wrong, 5)) == 2400  # type: ignore[arg-type]


def _views(examples: CodeExamples) -> np.ndarray:
    return examples.batch(np.arange(N_IMAGES), np.zeros(N_IMAGES, int))["tokens"].numpy()[:, 1]
