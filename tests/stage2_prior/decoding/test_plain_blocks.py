"""Plain blocks give what the modules give, and stand aside where a module is not what it was built as."""

from collections.abc import Callable

import pytest
import torch
from support.random_prior import cached_logits, decode_codes, examples, model, with_norm_weights
from torch import nn
from torch.nn.utils import parametrizations

from foundation.training.linear import Linear, packed_weights
from stage2_prior.block import RMSNorm
from stage2_prior.decoding.cache import KVCache
from stage2_prior.decoding.decode import stream_uniforms
from stage2_prior.decoding.engine import DecodingEngine
from stage2_prior.decoding.plain_blocks import plain_blocks
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-13}
"""relative to the largest value"""


def through(blocks: object, prior: PriorModel, n_rows: int, n_new: int) -> list[torch.Tensor]:
    """States after all blocks of five inputs, and of some more that follow them; and the cache."""
    generator = torch.Generator().manual_seed(5)
    wide = torch.float64 if prior.head.weight.dtype == torch.float64 else torch.float32
    x = torch.randn(n_rows, 5 + n_new, prior.config.shape.d_model, generator=generator).to(wide)
    positions, cache, states = prior.position_tables.on(torch.device("cpu")), KVCache.for_prior(prior, n_rows), []
    cache.kv.zero_()
    for start, end in ((0, 5), (5, 5 + n_new)):
        state = x[:, start:end].clone()
        for block, memory in zip(blocks, cache.append(end - start), strict=True):
            state = block(state, positions.part(start, end).rope, memory)
        states.append(state)
    return [*states, cache.kv]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"qk_norm": False}, {"positions": "learned"}])
@pytest.mark.parametrize("n_new", [1, 3])
def test_states_and_cache_are_those_of_the_modules(dtype: torch.dtype, options: dict, n_new: int) -> None:
    prior = with_norm_weights(model(**options)).to(dtype)
    with torch.inference_mode(), packed_weights(prior):
        blocks = plain_blocks(prior)
        assert blocks is not None
        for n_rows in (1, 2, 40):
            both = through(blocks, prior, n_rows, n_new), through(prior.blocks, prior, n_rows, n_new)
            for found, expected in zip(*both, strict=True):
                assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def hooked(prior: PriorModel) -> Callable[[], object]:
    return prior.blocks[1].feed_forward.register_forward_hook(lambda module, given, output: 2 * output).remove


def hooked_before(prior: PriorModel) -> Callable[[], object]:
    return prior.blocks[0].register_forward_pre_hook(lambda module, given: None).remove


def hooked_everywhere(prior: PriorModel) -> Callable[[], object]:
    return nn.modules.module.register_module_forward_hook(lambda module, given, output: None).remove


def replaced(prior: PriorModel) -> None:
    prior.blocks[0].attention.out = nn.Linear(32, 32, bias=False)


def patched(prior: PriorModel) -> None:
    prior.blocks[0].feed_forward.forward = lambda x: x


def parametrized(prior: PriorModel) -> None:
    parametrizations.weight_norm(prior.blocks[0].attention.qkv)


def compiled(prior: PriorModel) -> None:
    prior.compile_blocks()


def dropping(prior: PriorModel) -> Callable[[], object]:
    return prior.blocks[1].dropout.train().eval


def misplaced(prior: PriorModel) -> None:
    prior.blocks[1].dropout = RMSNorm(32).eval()


def without_inner_layers(prior: PriorModel) -> None:
    prior.blocks[1].feed_forward = Linear(32, 32).eval()


def with_one_norm(prior: PriorModel) -> None:
    prior.blocks[1].attention.k_norm = None


def of_two_types(prior: PriorModel) -> Callable[[], object]:
    return prior.blocks[1].feed_forward.double().float


@pytest.mark.parametrize(
    "change",
    [
        hooked,
        hooked_before,
        hooked_everywhere,
        replaced,
        patched,
        parametrized,
        compiled,
        dropping,
        misplaced,
        without_inner_layers,
        with_one_norm,
        of_two_types,
    ],
)
def test_where_a_module_is_another_the_modules_run(change: Callable[[PriorModel], Callable[[], object] | None]) -> None:
    prior = model()
    assert plain_blocks(prior) is not None
    undo = change(prior)
    assert plain_blocks(prior) is None
    if undo is not None:
        undo()
        assert plain_blocks(prior) is not None


def test_what_an_embedding_gives_stays_as_it_is() -> None:
    prior, seen = model(), []
    prior.code_embedding.register_forward_hook(lambda module, given, output: seen.append((output, output.clone())))
    codes = decode_codes(prior, torch.arange(3), stream_uniforms([1, 2, 3], prior.n_codes), SamplingConfig())
    assert len(codes) and seen and all(torch.equal(*each) for each in seen)


def test_an_engine_that_is_kept_sees_later_changes() -> None:
    prior = with_norm_weights(model())
    (tokens, labels), engine = examples(prior), DecodingEngine(prior)
    for change in (lambda: prior.blocks[0].attention.q_norm.weight.data.mul_(3), lambda: hooked(prior)):
        change()
        found = torch.stack(cached_logits(engine, tokens, labels, 0), 1)
        assert torch.allclose(found, prior(tokens, labels), atol=2e-5)


def test_blocks_of_the_gpt_kind_run_as_modules() -> None:
    assert plain_blocks(model(block="gpt", positions="learned", qk_norm=False)) is None


def test_autocast_runs_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, given = model(), []
    extend = type(prior).extend
    monkeypatch.setattr(
        type(prior), "extend", lambda *args, **options: given.append(options) or extend(*args, **options)
    )
    engine, positions = DecodingEngine(prior), prior.position_tables.on(torch.device("cpu"))
    tokens, labels = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    engine.extend(tokens, positions.part(0, 1), engine.new_cache(2), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine.extend(tokens, positions.part(0, 1), engine.new_cache(2), labels)
    assert [*given[0]] == ["blocks"] and not given[1]
