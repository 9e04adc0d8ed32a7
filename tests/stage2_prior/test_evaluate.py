"""Held-out likelihood by position, slot and class: each figure is the plain mean that it says it is."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foundation.codes.spec import CodeLevel, CodeSpec, code_positions
from foundation.codes.usage import count_codes_by_slot, summarize
from foundation.errors import DataError
from foundation.images.config import Preprocess
from stage2_prior.config import PriorConfig
from stage2_prior.evaluate import score_prior
from stage2_prior.prior import PriorModel

LEVELS = [
    (CodeLevel(height=3, width=5, codebook_size=11),),
    (CodeLevel(height=1, width=2, codebook_size=5), CodeLevel(height=2, width=4, codebook_size=9, depth=2)),
]


def prior_of(levels: tuple[CodeLevel, ...], **changes: object) -> PriorModel:
    torch.manual_seed(0)
    preprocess = Preprocess(height=4 * levels[-1].height, width=4 * levels[-1].width)
    spec = CodeSpec(levels=levels, stride=4, preprocess=preprocess, fingerprint="f", class_names=("a", "b", "c", "d"))
    settings: dict = {"d_model": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.3, **changes}
    prior = PriorModel(PriorConfig(**settings), spec).eval()
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return prior


def codes_for(prior: PriorModel, n: int, labels: list[int] | None = None) -> SimpleNamespace:
    """Labels are of classes a, b and d only."""
    rng = np.random.default_rng(0)
    codes = (rng.random((n, prior.n_codes)) * code_positions(prior.spec).codebook_size_T).astype(np.uint16)
    drawn = np.array([0, 1, 3])[rng.integers(0, 3, n)] if labels is None else np.array(labels)
    return SimpleNamespace(codes_NT=codes, labels_N=drawn.astype(np.int64))


def plain_nats(prior: PriorModel, held_out: SimpleNamespace) -> np.ndarray:
    """(N, T), from the logits, one image at a time."""
    rows = []
    for codes, label in zip(held_out.codes_NT.astype(np.int64), held_out.labels_N, strict=True):
        tokens = torch.from_numpy(codes)[None]
        with torch.no_grad():
            probs = prior(tokens, torch.tensor([label if prior.n_classes else prior.null_class])).log_softmax(-1)
        rows.append(-probs.gather(2, tokens.unsqueeze(2))[0, :, 0].double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("batch_size", [7, 256])
def test_every_figure_is_the_mean_that_it_says_it_is(levels: tuple[CodeLevel, ...], batch_size: int) -> None:
    prior = prior_of(levels)
    held_out = codes_for(prior, 30)
    nats = plain_nats(prior, held_out)
    scores = score_prior(prior, held_out, batch_size=batch_size)  # type: ignore[arg-type]
    assert scores.n_images == 30
    assert scores.nats_T == pytest.approx(nats.mean(0), rel=1e-5)
    assert scores.nats_per_code == pytest.approx(nats.mean(), rel=1e-5)
    assert scores.bits_per_image == pytest.approx(nats.sum(1).mean() / math.log(2), rel=1e-5)
    preprocess = prior.spec.preprocess
    assert scores.bits_per_value * preprocess.height * preprocess.width * 3 == pytest.approx(scores.bits_per_image)
    slot_T = code_positions(prior.spec).slot_T
    for i, value in enumerate(scores.nats_per_slot):
        assert value == pytest.approx(nats[:, slot_T == i].mean(), rel=1e-5)
    assert scores.unigram_bits == pytest.approx(
        summarize(count_codes_by_slot(held_out.codes_NT, prior.spec)).entropy_bits
    )
    assert [(each.name, each.n_images) for each in scores.classes] == [
        (name, int((held_out.labels_N == number).sum())) for number, name in ((0, "a"), (1, "b"), (3, "d"))
    ]
    for each in scores.classes:
        own = nats[held_out.labels_N == "abcd".index(each.name)]
        assert each.bits_per_code == pytest.approx(own.mean() / math.log(2), rel=1e-5)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_place_of_the_grid_has_the_bits_of_its_own_code(levels: tuple[CodeLevel, ...]) -> None:
    prior = prior_of(levels)
    held_out = codes_for(prior, 12)
    bits_T = plain_nats(prior, held_out).mean(0) / math.log(2)
    places = score_prior(prior, held_out).bits_by_place()  # type: ignore[arg-type]
    assert [slot for slot, _ in places] == list(prior.spec.slots)
    grids = prior.spec.split(bits_T[None])
    for slot, bits_HW in places:
        level = grids[slot.level][0]
        assert bits_HW == pytest.approx(level if level.ndim == 2 else level[..., slot.depth], rel=1e-5)


def test_the_log_names_the_extreme_classes_by_number_and_holds_no_array() -> None:
    prior = prior_of(LEVELS[0])
    scores = score_prior(prior, codes_for(prior, 40))  # type: ignore[arg-type]
    metrics = scores.metrics()
    assert len(metrics) == 10 and all(isinstance(value, float) for value in metrics.values())
    bits = {each.name: each.bits_per_code for each in scores.classes}
    names = prior.spec.class_names
    assert bits[names[int(metrics["worst_class"])]] == max(bits.values()) == metrics["worst_class_bits_per_code"]
    assert bits[names[int(metrics["best_class"])]] == min(bits.values()) == metrics["best_class_bits_per_code"]


def test_a_prior_that_sees_no_classes_is_still_scored_by_class() -> None:
    prior = prior_of(LEVELS[0], class_conditional=False)
    held_out = codes_for(prior, 20)
    scores = score_prior(prior, held_out)  # type: ignore[arg-type]
    nats = plain_nats(prior, held_out)
    assert scores.classes[2].name == "d"
    expected = nats[held_out.labels_N == 3].mean() / math.log(2)
    assert scores.classes[2].bits_per_code == pytest.approx(expected, rel=1e-5)


def test_codes_without_labels_are_scored_with_the_null_class() -> None:
    prior = prior_of(LEVELS[0])
    held_out = codes_for(prior, 10)
    without = score_prior(prior, SimpleNamespace(codes_NT=held_out.codes_NT, labels_N=None))  # type: ignore[arg-type]
    null = SimpleNamespace(codes_NT=held_out.codes_NT, labels_N=np.full(10, prior.null_class))
    assert without.nats_per_code == pytest.approx(plain_nats(prior, null).mean(), rel=1e-5)
    assert without.classes == () and "worst_class" not in without.metrics()


def test_dropout_is_off_and_the_mode_is_restored() -> None:
    prior = prior_of(LEVELS[0])
    held_out = codes_for(prior, 10)
    expected = score_prior(prior, held_out).nats_T  # type: ignore[arg-type]
    prior.train()
    assert np.array_equal(score_prior(prior, held_out).nats_T, expected)  # type: ignore[arg-type]
    assert prior.training


def test_codes_that_cannot_be_scored_are_refused() -> None:
    prior = prior_of(LEVELS[0])
    empty = SimpleNamespace(codes_NT=np.zeros((0, 15), int), labels_N=None)
    with pytest.raises(DataError, match="no codes"):
        score_prior(prior, empty)  # type: ignore[arg-type]
    wrong = SimpleNamespace(codes_NT=np.full((2, 15), 11), labels_N=None)
    with pytest.raises(DataError, match=r"11\.\.11"):
        score_prior(prior, wrong)  # type: ignore[arg-type]
