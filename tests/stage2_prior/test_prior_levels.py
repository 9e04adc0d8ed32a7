"""A prior of two levels learns that the fine codes follow from the coarse ones; its scores tell the levels apart."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.random_prior import decode_codes
from torch.nn import functional as F

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.images.config import Preprocess
from stage2_prior.config import PriorConfig
from stage2_prior.data import CodeExamples
from stage2_prior.decoding.decode import stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.evaluate import score_prior
from stage2_prior.prior import PriorModel

TOP, BOTTOM = CodeLevel(height=1, width=2, codebook_size=5), CodeLevel(height=2, width=4, codebook_size=9)
SPEC = CodeSpec(levels=(TOP, BOTTOM), stride=4, preprocess=Preprocess(height=8, width=16), fingerprint="f")


def bottom_of(top_BHW: np.ndarray) -> np.ndarray:
    """The rule of the toy: a fine code is 8 minus the code above it, plus its place in the block, modulo 9."""
    rows, columns = np.indices((BOTTOM.height, BOTTOM.width))
    above = top_BHW[:, rows // 2, columns // 2]
    return (8 - above + 2 * (rows % 2) + columns % 2) % 9


def toy(n: int, seed: int) -> SimpleNamespace:
    top = np.random.default_rng(seed).integers(0, TOP.codebook_size, (n, TOP.height, TOP.width))
    return SimpleNamespace(codes_NT=SPEC.join([top, bottom_of(top)]).astype(np.uint16), labels_N=None, grids_N=None)


@pytest.fixture(scope="module")
def trained() -> PriorModel:
    torch.manual_seed(0)
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=2, dropout=0.0, rope_base=100.0), SPEC)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    examples = CodeExamples(toy(512, seed=0), prior.n_classes)  # type: ignore[arg-type]
    for step in range(150):
        indices = np.random.default_rng(step).integers(0, len(examples), 64)
        batch = examples.batch(indices, np.zeros_like(indices))
        loss = F.cross_entropy(prior(batch["tokens"], batch["labels"]).flatten(0, 1), batch["tokens"].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


def test_the_fine_codes_cost_nothing_and_the_coarse_ones_their_entropy(trained: PriorModel) -> None:
    scores = score_prior(trained, toy(300, seed=1))  # type: ignore[arg-type]
    top, bottom = scores.nats_per_slot
    assert bottom < 0.02
    assert math.log(5) - 0.02 < top < math.log(5) + 0.1
    metrics = scores.metrics()
    assert metrics["bits_per_code_level1_depth0"] == bottom / math.log(2)
    assert metrics["nats_per_code"] == pytest.approx((2 * top + 8 * bottom) / 10)
    assert metrics["uniform_nats_per_code"] == pytest.approx((2 * math.log(5) + 8 * math.log(9)) / 10)
    assert metrics["bits_per_image"] == pytest.approx(10 * metrics["bits_per_code"])


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(temperature=0.7, top_k=6, top_p=0.95)])
def test_samples_obey_the_rule(trained: PriorModel, sampling: SamplingConfig) -> None:
    labels = torch.full((200,), trained.null_class)
    drawn = decode_codes(trained, labels, stream_uniforms(list(range(200)), trained.n_codes), sampling)
    top, bottom = SPEC.split(drawn.numpy())
    assert (bottom == bottom_of(top)).mean() > 0.98
    assert len(np.unique(top.reshape(200, -1), axis=0)) > 15, "it draws many different images"


def test_the_unigram_entropy_is_that_of_each_slot() -> None:
    """Coarse codes all 0 and fine codes all 3: mixed, they would have 0.72 bits; by slot they have none."""
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), SPEC).eval()
    constant = SPEC.join([np.zeros((4, 1, 2), int), np.full((4, 2, 4), 3)])
    scores = score_prior(prior, SimpleNamespace(codes_NT=constant, labels_N=None, grids_N=None))  # type: ignore[arg-type]
    assert scores.unigram_bits == 0 and scores.metrics()["below_unigram"] == 0
    assert scores.nats_per_slot == pytest.approx((math.log(5), math.log(9))), "an untrained prior knows nothing"


def test_a_prior_of_one_slot_reports_what_it_always_did() -> None:
    one = CodeSpec(levels=(BOTTOM,), stride=4, preprocess=Preprocess(height=8, width=16), fingerprint="f")
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), one).eval()
    codes = np.random.default_rng(0).integers(0, 9, (300, 8))
    metrics = score_prior(prior, SimpleNamespace(codes_NT=codes, labels_N=None, grids_N=None)).metrics()  # type: ignore[arg-type]
    assert set(metrics) == {
        "bits_per_code",
        "below_unigram",
        "bits_per_image",
        "nats_per_code",
        "uniform_nats_per_code",
        "unigram_bits_per_code",
    }
    assert metrics["nats_per_code"] == pytest.approx(math.log(9)) and metrics["uniform_nats_per_code"] == math.log(9)
