"""A prior of images of several shapes knows the grid that it draws."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.random_prior import cached_logits, decode_codes
from support.several_shapes import examples, model, spec

from foundation.codes.spec import CodeSpec
from foundation.errors import DataError
from foundation.training.config import FitConfig, OptimConfig
from stage2_prior.config import PriorConfig, PriorTraining, RandomOrder
from stage2_prior.count_models import NeighbourModel
from stage2_prior.data import CodeExamples
from stage2_prior.decoding.decode import engine_for, stream_uniforms
from stage2_prior.decoding.engine import CompiledEngine, DecodingEngine
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.evaluate import score_prior
from stage2_prior.prior import PriorModel
from stage2_prior.start import start_prior
from stage2_prior.train import PriorTask

OPTIONS = [{}, {"positions": "learned"}, {"target_aware": True}, {"block": "gpt", "class_rotation": "zero"}]
TABLES = ("place_embedding", "target_embedding")


def of_one_grid(prior: PriorModel, grid: int) -> PriorModel:
    """A prior of images of one shape with the same weights, the grid's embedding left out."""
    alone = PriorModel(prior.config, prior.spec.of_grid(grid)).eval()
    state = {name: value for name, value in prior.state_dict().items() if not name.startswith("grid_embedding")}
    n = prior.n_codes
    for name, first in (("place_embedding.weight", 1), ("target_embedding.weight", 0)):
        if name in state:
            own = state[name][first + grid * n : first + (grid + 1) * n]
            state[name] = torch.cat([state[name][:first], own])
    alone.load_state_dict(state)
    return alone


def test_grids_of_a_specification() -> None:
    codes = spec(depth=2)
    assert codes.grids == ((4, 6), (6, 4), (2, 12)) and codes.n_grids == 3
    assert codes.of_grid(1).shape == (6, 4, 2) and codes.of_grid(1).n_grids == 1
    assert codes.find_grid((2, 12, 2)) == 2 and codes.find_grid((3, 8, 2)) is None
    assert codes.grid(np.zeros((5, 48), int), 2).shape == (5, 2, 12, 2)
    first = CodeSpec(
        levels=codes.levels, stride=2, preprocess=codes.preprocess.of_shape(0), fingerprint=codes.fingerprint
    )
    assert first.n_grids == 1 and first.of_grid(0) is first and first.contract != codes.contract


@pytest.mark.parametrize("options", OPTIONS)
def test_without_its_embedding_each_grid_has_the_logits_of_a_prior_of_that_shape_alone(options: dict) -> None:
    prior = model(spec(), **options)
    tokens, labels, _ = examples(prior)
    torch.nn.init.zeros_(prior.grid_embedding.weight)
    for grid in range(3):
        expected = of_one_grid(prior, grid)(tokens, labels)
        assert torch.allclose(prior(tokens, labels, grids_B=grid), expected, atol=1e-6)
    assert not torch.allclose(prior(tokens, labels, grids_B=0), prior(tokens, labels, grids_B=1), atol=1e-3)


def test_a_new_prior_of_several_shapes_starts_with_a_grid_embedding_of_zero() -> None:
    prior = PriorModel(PriorConfig(d_model=32, n_layers=1, n_heads=2), spec())
    assert not prior.grid_embedding.weight.any()
    assert PriorModel(PriorConfig(d_model=32, n_layers=1, n_heads=2), spec().of_grid(1)).grid_embedding is None


def test_grids_of_a_batch_are_each_image_s_own() -> None:
    prior = model(spec())
    tokens, labels, grids = examples(prior, 6)
    together = prior(tokens, labels, grids_B=grids)
    for i in range(6):
        alone = prior(tokens[i : i + 1], labels[i : i + 1], grids_B=int(grids[i]))
        assert torch.allclose(together[i], alone[0], atol=1e-5)
    assert torch.allclose(prior.nll(tokens, labels, grids)[2], prior.nll(tokens[2:3], labels[2:3], 2)[0], atol=1e-5)


def test_the_prior_knows_the_grid_before_the_first_code() -> None:
    prior = model(spec())
    tokens, labels, _ = examples(prior)
    first = [prior(tokens, labels, grids_B=grid)[:, 0] for grid in range(3)]
    assert not torch.allclose(first[0], first[1], atol=1e-3) and not torch.allclose(first[1], first[2], atol=1e-3)


def test_codes_in_rows_and_columns_say_their_grid() -> None:
    prior = model(spec())
    tokens, labels, _ = examples(prior)
    assert torch.equal(prior(tokens.view(-1, 6, 4), labels), prior(tokens, labels, grids_B=1))
    assert torch.equal(prior(tokens, labels), prior(tokens, labels, grids_B=0))


@pytest.mark.parametrize(
    ("grids", "message"),
    [(3, "no such grid"), (torch.tensor([0, 1]), "one for each image"), (torch.tensor([0, 1, 2, -1]), "no such grid")],
)
def test_a_grid_that_does_not_exist_is_refused(grids, message: str) -> None:
    prior = model(spec())
    tokens, labels, _ = examples(prior)
    with pytest.raises(DataError, match=message):
        prior(tokens, labels, grids_B=grids)
    with pytest.raises(DataError, match="no such grid"):
        model(spec().of_grid(0))(tokens, labels, grids_B=1)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_engine_of_each_grid_computes_what_the_model_does(options: dict) -> None:
    prior = model(spec(), **options)
    tokens, labels, _ = examples(prior)
    for grid in (2, 0, 1):
        full, engine = prior(tokens, labels, grids_B=grid).detach(), engine_for(prior, grid)
        for t, logits in enumerate(cached_logits(engine, tokens, labels, 5), start=5):
            assert torch.allclose(logits, full[:, t], atol=2e-5)


@pytest.mark.slow
def test_the_compiled_engine_of_another_grid_agrees_with_the_plain_one() -> None:
    prior = model(spec())
    tokens, labels, _ = examples(prior)
    for kind in (DecodingEngine, CompiledEngine):
        found = cached_logits(kind(prior, 1), tokens, labels, 3)[1]
        assert torch.allclose(found, prior(tokens, labels, grids_B=1)[:, 4], atol=2e-5)


def test_sampling_agrees_with_the_likelihood_of_its_grid() -> None:
    prior = model(spec())
    labels, uniforms = torch.tensor([0, 1, 3]), stream_uniforms([1, 2, 3], prior.n_codes)
    for grid in range(3):
        likeliest = decode_codes(prior, labels, uniforms, SamplingConfig(guidance_scale=1.0, temperature=0), grid=grid)
        logits = prior(likeliest, labels, grids_B=grid)
        assert torch.equal(logits.argmax(-1), likeliest)
        nats = -logits.log_softmax(-1).gather(2, likeliest.unsqueeze(2)).squeeze(2)
        assert torch.allclose(nats, prior.nll(likeliest, labels, grid), atol=1e-5)
    with pytest.raises(DataError, match="no such grid"):
        decode_codes(prior, labels, uniforms, SamplingConfig(), grid=3)


def test_random_orders_have_the_positions_of_the_image_s_grid() -> None:
    prior = model(spec(), target_aware=True)
    tokens, labels, grids = examples(prior)
    raster = torch.arange(prior.n_codes).expand(4, -1)
    expected = prior(tokens, labels, grids_B=grids)
    assert torch.allclose(prior(tokens, labels, raster, grids), expected, atol=1e-5), "raster order is one of them"
    order = torch.randperm(prior.n_codes, generator=torch.Generator().manual_seed(0)).expand(4, -1)
    mixed = prior(tokens, labels, order, grids)
    torch.nn.init.zeros_(prior.grid_embedding.weight)
    alone = of_one_grid(prior, 1)(tokens[1:2], labels[1:2], order[1:2])
    assert torch.allclose(prior(tokens, labels, order, grids)[1], alone[0], atol=1e-5)
    assert not torch.allclose(mixed[1], alone[0], atol=1e-3)


def dataset(n: int = 48) -> SimpleNamespace:
    """Codes that say their grid."""
    grids = np.arange(n) % 3
    codes = (np.random.default_rng(0).integers(0, 2, (n, 24)) + 5 * grids[:, None]).astype(np.uint16)
    return SimpleNamespace(codes_NT=codes, labels_N=None, grids_N=grids.astype(np.int8), spec=spec(0))


def test_a_prior_learns_the_codes_of_each_grid() -> None:
    torch.manual_seed(0)
    model_config = PriorConfig(d_model=32, n_layers=1, n_heads=2, dropout=0.0, target_aware=True)
    training = PriorTraining(
        fit=FitConfig(steps=40, batch_size=48),
        optim=OptimConfig(learning_rate=2e-2, warmup_steps=2),
        micro_batch_size=32,
        random_order=RandomOrder(until_step=5, zero_step=10),
    )
    data = dataset()
    task = PriorTask(PriorModel(model_config, spec(0)), training, data, Accelerator(cpu=True))
    examples = CodeExamples(data, 0)
    batch = examples.batch(np.arange(48), np.zeros(48, int))
    assert batch["grids"].tolist() == data.grids_N.tolist()
    for step in range(40):
        task.train_step({**batch, "positions": torch.arange(48)}, step)
    metrics = score_prior(task.model, data).metrics()
    assert metrics["bits_per_code"] < 1.6, "one bit, once the grid says which pair of codes"
    assert {f"bits_per_code_grid{i}" for i in range(3)} <= set(metrics)
    mistaken = copy.copy(data)
    mistaken.grids_N = (data.grids_N + 1) % 3
    assert score_prior(task.model, mistaken).nats_T[0] > 2 * score_prior(task.model, data).nats_T[0]


def test_bits_by_place_are_of_each_grid() -> None:
    prior, data = model(spec(0)), dataset(5)
    scores = score_prior(prior, data)
    assert [bits.shape for _, bits in scores.bits_by_place()] == [(4, 6), (6, 4), (2, 12)]
    assert scores.grids[0].n_images == 2 and scores.grids[2].n_images == 1
    weighted = sum(each.n_images * each.nats_T for each in scores.grids.values()) / 5
    assert np.allclose(weighted, scores.nats_T)


def test_neighbours_are_those_of_one_grid() -> None:
    data = dataset()
    with pytest.raises(DataError, match="several shapes"):
        NeighbourModel.fit(data.codes_NT, spec(0))
    NeighbourModel.fit(data.codes_NT[data.grids_N == 1], spec(0).of_grid(1))


def test_a_prior_of_one_shape_starts_a_prior_of_several() -> None:
    source, started = model(spec().of_grid(0)), model(spec())
    torch.nn.init.zeros_(started.grid_embedding.weight)
    notes = start_prior(started, source)
    assert any("grid" in note for note in notes)
    tokens, labels, _ = examples(started)
    assert torch.equal(started(tokens, labels), source(tokens, labels))


def test_a_saved_prior_keeps_its_grids(tmp_path) -> None:
    prior = model(spec())
    prior.save(tmp_path)
    loaded = PriorModel.load(tmp_path)
    tokens, labels, grids = examples(prior)
    assert torch.equal(loaded(tokens, labels, grids_B=grids), prior(tokens, labels, grids_B=grids))
