from types import SimpleNamespace

import numpy as np

from stage2_prior.data import CodeExamples

DATASET = SimpleNamespace(codes_NT=np.arange(4000).reshape(1000, 4), labels_N=np.arange(1000) % 5)


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
