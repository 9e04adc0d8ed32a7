"""The decoding engine computes what the model computes, and what it computes of a row depends on that row alone."""

import copy

import pytest
import torch
from support.random_prior import LEVELS, OPTIONS, examples, model, with_norm_weights

from foundation.codes.spec import CodeLevel
from foundation.errors import DataError
from stage2_prior.decoding.decode import engine_for
from stage2_prior.decoding.engine import DecodingEngine, KVCache
from stage2_prior.decoding.weights import PackedLinear, PlainLinear, can_pack, weight_type

CPU = torch.device("cpu")
WIDE = {"d_model": 64, "n_heads": 2, "d_ff": 1408}
"""Wide enough for a single row to go through another kernel than several do."""
HAS_BF16 = can_pack(CPU) and torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bf16_products = pytest.mark.skipif(not HAS_BF16, reason="oneDNN has no bf16 products on this processor")


def all_logits(
    engine: DecodingEngine, tokens_BT: torch.Tensor, labels_B: torch.Tensor, given: int
) -> list[torch.Tensor]:
    """Those of codes ``given`` and after, (B, size of their codebook) each."""
    cache = engine.new_cache(len(tokens_BT))
    x = engine.prefill(labels_B, tokens_BT[:, :given], cache)
    found = [engine.logits(x, given)]
    for t in range(given + 1, engine.n_codes):
        x = engine.decode_one(tokens_BT[:, t - 1], cache)
        found.append(engine.logits(x, t))
    return found


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_cached_decoding_equals_the_full_forward(levels: tuple[CodeLevel, ...], options: dict) -> None:
    prior = with_norm_weights(model(levels, **options))
    tokens, labels = examples(prior)
    full, engine = prior(tokens, labels).detach(), DecodingEngine(prior)
    for given in (0, 1, prior.n_codes // 2, prior.n_codes - 1):
        for t, logits in enumerate(all_logits(engine, tokens, labels, given), start=given):
            expected = full[:, t, : int(prior.position_tables.size_T[t])]
            assert logits.shape == expected.shape
            assert torch.allclose(logits, expected, rtol=0, atol=2e-5)


def test_a_cache_holds_one_image_and_no_more() -> None:
    prior = model()
    tokens, labels = examples(prior)
    engine = DecodingEngine(prior)
    cache = engine.new_cache(3)
    engine.prefill(labels, tokens[:, :-1], cache)
    with pytest.raises(DataError, match="more codes than an image has"):
        engine.decode_one(tokens[:, -1], cache)
    with pytest.raises(DataError, match=r"17(.|\n)*16"):
        engine.prefill(labels, tokens, cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_s_logits_do_not_depend_on_the_other_rows_to_the_last_bit(dtype: torch.dtype) -> None:
    prior = model(**WIDE).to(dtype)
    tokens, labels = examples(prior, batch=40)
    engine = DecodingEngine(prior)
    together = all_logits(engine, tokens, labels, given=3)
    for rows in (slice(0, 2), slice(5, 8), slice(7, 40)):
        part = all_logits(engine, tokens[rows], labels[rows], given=3)
        assert all(torch.equal(one, all_rows[rows]) for one, all_rows in zip(part, together, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_that_are_given_and_codes_that_were_drawn_are_the_same_to_the_last_bit(dtype: torch.dtype) -> None:
    prior = model((CodeLevel(height=6, width=7, codebook_size=50),), **WIDE).to(dtype)
    tokens, labels = examples(prior, batch=5)
    engine = DecodingEngine(prior)
    steps = all_logits(engine, tokens, labels, given=0)
    for known in (1, 17, 40):
        rest = all_logits(engine, tokens, labels, given=known)
        assert all(torch.equal(one, other) for one, other in zip(steps[known:], rest, strict=True))


def test_rows_stay_the_same_where_threads_share_them() -> None:
    prior = model(**WIDE)
    tokens, labels = examples(prior, batch=71)
    pairs = (22, 23, 46, 47)  # a third and two thirds of 71 rows of 1,408 numbers lie in rows 23 and 47
    engine, threads = DecodingEngine(prior), torch.get_num_threads()
    expected = [all_logits(engine, tokens[i : i + 2], labels[i : i + 2], given=13) for i in pairs]
    try:
        torch.set_num_threads(3)
        together = all_logits(engine, tokens, labels, given=13)
    finally:
        torch.set_num_threads(threads)
    for i, alone in zip(pairs, expected, strict=True):
        assert all(torch.equal(all_rows[i : i + 2], one) for all_rows, one in zip(together, alone, strict=True))


def test_long_prefills_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = model()
    tokens, labels = examples(prior, batch=7)
    whole = all_logits(DecodingEngine(prior), tokens, labels, given=9)
    monkeypatch.setattr("stage2_prior.decoding.engine._PREFILL_TOKENS", 25)
    parts = all_logits(DecodingEngine(prior), tokens, labels, given=9)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_the_engine_follows_the_weights() -> None:
    prior = model()
    tokens, labels = examples(prior)
    first = engine_for(prior)
    assert engine_for(prior) is first
    assert engine_for(copy.deepcopy(prior)) is not first
    with torch.no_grad():
        prior.head.weight.mul_(2)
    second = engine_for(prior)
    assert second is not first
    twice = all_logits(second, tokens, labels, 0)
    assert all(torch.equal(2 * a, b) for a, b in zip(all_logits(first, tokens, labels, 0), twice, strict=True))
    assert engine_for(prior.double()) is not second


def test_an_engine_goes_with_its_prior() -> None:
    import gc

    from stage2_prior.decoding import decode as module

    prior = model()
    engine_for(prior)
    before = len(module._ENGINES)
    del prior
    gc.collect()
    assert len(module._ENGINES) == before - 1


def test_bf16_stays_near_float32() -> None:
    prior = model(**WIDE)
    tokens, labels = examples(prior)
    exact = all_logits(DecodingEngine(prior), tokens, labels, 2)
    rounded = all_logits(DecodingEngine(prior.bfloat16()), tokens, labels, 2)
    scale = max(float(each.abs().max()) for each in exact)
    assert all((a - b).abs().max() < 0.05 * scale for a, b in zip(exact, rounded, strict=True))


def test_types_that_a_cpu_is_slow_at_become_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert weight_type(torch.float32, CPU) == torch.float32
    assert weight_type(torch.float16, CPU) == torch.float32
    assert weight_type(torch.float16, torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert weight_type(torch.bfloat16, CPU) == torch.float32


def test_without_onednn_the_plain_products_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = model()
    tokens, labels = examples(prior)
    expected = all_logits(DecodingEngine(prior), tokens, labels, 2)
    monkeypatch.setattr("stage2_prior.decoding.weights.can_pack", lambda device: False)
    engine = DecodingEngine(prior)
    assert isinstance(engine.weights.head, PlainLinear)
    found = all_logits(engine, tokens, labels, 2)
    assert all(torch.allclose(a, b, rtol=0, atol=2e-5) for a, b in zip(expected, found, strict=True))


@pytest.mark.skipif(not can_pack(CPU), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16_products)])
@pytest.mark.parametrize("shape", [(29, 32), (96, 32), (768, 256), (256, 1408)])
def test_packed_products_sum_in_one_order_for_any_number_of_rows(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator) for size in (shape, (67, shape[1])))
    residual, linear = torch.randn(67, shape[0], generator=generator), PackedLinear(weight, dtype)
    with torch.inference_mode():
        product, added = linear(x), linear.add_to(residual.clone(), x)
        assert torch.allclose(product, x.to(dtype).float() @ weight.to(dtype).float().t(), rtol=2e-2, atol=0.3)
        for rows in (slice(0, 2), slice(3, 6), slice(10, 26), slice(1, 67)):
            assert torch.equal(linear(x[rows]), product[rows])
            assert torch.equal(linear.add_to(residual[rows].clone(), x[rows]), added[rows])


def test_a_cache_in_another_type_is_read_in_that_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where keys and values are kept in the type of the weights."""
    prior = model()
    tokens, labels = examples(prior)
    engine = DecodingEngine(prior)
    expected = all_logits(engine, tokens, labels, 2)
    layers, heads, _ = prior.config.shape
    kv = torch.empty(layers, 2, 3 * heads, prior.n_codes, prior.config.d_head, dtype=torch.bfloat16)
    monkeypatch.setattr(engine, "new_cache", lambda n_rows: KVCache(kv, heads))
    found = all_logits(engine, tokens, labels, 2)
    assert all(torch.allclose(a, b, rtol=0, atol=0.2) for a, b in zip(expected, found, strict=True))
