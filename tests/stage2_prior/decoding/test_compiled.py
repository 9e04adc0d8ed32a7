"""The compiled step computes what the plain engine computes, and the same codes are drawn with it."""

from __future__ import annotations

import pytest
import torch
from support.random_prior import LEVELS, OPTIONS, cached_logits, decode_codes, examples, model, with_norm_weights

from foundation.codes.spec import CodeLevel
from foundation.errors import DataError
from stage2_prior.decoding.decode import engine_for, stream_uniforms
from stage2_prior.decoding.engine import CompiledEngine, DecodingEngine
from stage2_prior.decoding.sampling import SamplingConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_its_formulas_are_those_of_the_plain_engine(
    levels: tuple[CodeLevel, ...], options: dict, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, before they are compiled."""
    monkeypatch.setattr(CompiledEngine, "_compiled", lambda self, function: function)
    prior = with_norm_weights(model(levels, **options)).to(dtype)
    plain, compiled = DecodingEngine(prior), CompiledEngine(prior)
    tolerance = 2e-5 if dtype == torch.float32 else 0.2
    for given in (0, prior.n_codes // 2):
        found = (cached_logits(each, *examples(prior), given) for each in (plain, compiled))
        for one, other in zip(*found, strict=True):
            assert one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=tolerance)


def test_compiled_it_draws_the_same_codes() -> None:
    """Guidance that joins and leaves, known codes, and a last batch that is smaller."""
    prior = model((CodeLevel(height=2, width=4, codebook_size=50),), d_model=64, n_layers=2)
    labels, uniforms = torch.tensor([0, 1, 2, 1, 0]), stream_uniforms([1, 2, 3, 4, 5], 8)
    known = torch.full((5, 8), -1)
    known[:, 0], known[2, 5] = 7, 9
    sampling = SamplingConfig(guidance_scale=3.0, guidance_interval=(0.3, 0.8), schedule="cosine", top_k=20, min_p=0.05)

    def drawn() -> torch.Tensor:
        return decode_codes(prior, labels, uniforms, sampling, known_BT=known, max_rows=3)

    expected = drawn()
    prior.compile_decoding()
    assert isinstance(engine_for(prior), CompiledEngine)
    assert torch.equal(drawn(), expected)


def test_beyond_torch_s_limit_of_programs_the_step_runs_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage2_prior.decoding.engine._MOST_PROGRAMS", 2)
    torch._dynamo.reset()  # programs of other tests count
    prior = model((CodeLevel(height=2, width=2, codebook_size=50),))
    draws = {n: (torch.arange(n) % 3, stream_uniforms(range(n), 4)) for n in (2, 3, 4)}
    expected = {n: decode_codes(prior, *draw, SamplingConfig()) for n, draw in draws.items()}
    prior.compile_decoding()
    for n in (2, 3, 4, 2):
        assert torch.equal(decode_codes(prior, *draws[n], SamplingConfig()), expected[n])
    engine = engine_for(prior)
    assert isinstance(engine, CompiledEngine) and engine._programs and engine._refused


def test_batches_of_every_size_have_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledEngine, "_compiled", lambda self, function: function)
    prior = model((CodeLevel(height=2, width=2, codebook_size=50),))
    draws = {n: (torch.arange(n) % 3, stream_uniforms(range(n), 4)) for n in range(1, 41)}
    expected = {n: decode_codes(prior, *draw, SamplingConfig()) for n, draw in draws.items()}
    prior.compile_decoding()
    engine = engine_for(prior)
    assert isinstance(engine, CompiledEngine)
    for n, draw in draws.items():
        assert n <= engine.batch_for(n) <= max(n, 1.5 * n - 0.5) and engine.batch_for(2 * n) == 2 * engine.batch_for(n)
        assert torch.equal(decode_codes(prior, *draw, SamplingConfig()), expected[n])
        assert torch.equal(decode_codes(prior, *draw, SamplingConfig(), max_rows=5), expected[n])
    assert {n_rows for n_rows, _, _ in engine._programs} == {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48}


def test_a_full_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledEngine, "_compiled", lambda self, function: function)
    prior = model()
    tokens, labels = examples(prior)
    engine, positions = CompiledEngine(prior), prior.position_tables.on(tokens.device)
    cache = engine.new_cache(3)
    engine.extend(tokens[:, :-1], positions, cache, labels)
    with pytest.raises(DataError, match="more codes than an image has"):
        engine.extend(tokens[:, -1:], positions.part(15, 16), cache)


def test_memory_of_a_cache_that_is_gone_is_used_again_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledEngine, "_compiled", lambda self, function: function)
    engine = CompiledEngine(model())
    one, other = engine.new_cache(3), engine.new_cache(3)
    places = {one.kv.data_ptr(), other.kv.data_ptr()}
    assert len(places) == 2
    with torch.inference_mode():
        other.kv.fill_(torch.nan)
    place = other.kv.data_ptr()
    del other
    again, wider = engine.new_cache(3), engine.new_cache(4)
    assert again.kv.data_ptr() == place and not again.kv.any()
    assert wider.n_rows == 4 and wider.kv.data_ptr() not in places
