"""The decoding engine computes what the model computes, on its own modules."""

from itertools import pairwise

import pytest
import torch
from peft.tuners.lora import LoraLayer
from support.random_prior import LEVELS, OPTIONS, cached_logits, decode_codes, examples, model, with_norm_weights
from torch import nn

from foundation.codes.spec import CodeLevel
from foundation.errors import ConfigError, DataError
from foundation.training.linear import can_pack
from stage2_prior.config import LoRAConfig
from stage2_prior.decoding.cache import KVCache
from stage2_prior.decoding.decode import engine_for, stream_uniforms
from stage2_prior.decoding.engine import DecodingEngine
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.lora import add_adapters
from stage2_prior.orders import MASKED
from stage2_prior.prior import PriorModel

CPU = torch.device("cpu")
WIDE = {"d_model": 64, "n_heads": 2, "d_ff": 1408}
HAS_BF16 = can_pack(CPU) and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_cached_decoding_equals_the_full_forward(levels: tuple[CodeLevel, ...], options: dict) -> None:
    prior = with_norm_weights(model(levels, **options))
    tokens, labels = examples(prior)
    full, engine = prior(tokens, labels).detach(), DecodingEngine(prior)
    for given in (0, 1, prior.n_codes // 2, prior.n_codes - 1):
        for t, logits in enumerate(cached_logits(engine, tokens, labels, given), start=given):
            size = int(prior.sizes_T[t])
            assert torch.allclose(logits[:, :size], full[:, t, :size], rtol=0, atol=2e-5)


def test_several_inputs_after_those_in_the_cache_and_probes_equal_single_ones() -> None:
    """A chunk is causal; a probe stands for the chunk's last input and is gone afterwards."""
    prior = with_norm_weights(model(order="any"))
    tokens, labels = examples(prior)
    orders = torch.stack([torch.randperm(16) for _ in range(3)])
    ordered, positions = tokens.gather(1, orders), prior.position_tables.ordered(orders, 3)
    full, engine = prior(tokens, labels, orders).detach(), DecodingEngine(prior)
    cache = engine.new_cache(3, 2)
    engine.extend(ordered[:, :4], positions.part(0, 5), cache, labels)
    targets = torch.arange(5, 11)
    inputs = torch.cat([ordered[:, 4:8], ordered[:, 7:8].expand(-1, 2)], 1)
    x = engine.extend(inputs, positions.at(targets.clamp_max(8), targets), cache, n_probes=2)
    swapped = orders.clone()
    for probe, target in enumerate((8, 9, 10)):
        swapped[:, 8] = orders[:, target]
        swapped[:, target] = orders[:, 8]
        expected = prior(tokens, labels, swapped)[:, 8]
        assert torch.allclose(engine.logits(x)[:, probe], expected, atol=2e-5)
        swapped = orders.clone()
    x = engine.extend(ordered[:, 8:9], positions.part(9, 10), cache)
    assert torch.allclose(engine.logits(x)[:, 0], full[:, 9], atol=2e-5) and cache.filled == 10


def test_a_cache_holds_one_image_and_no_more() -> None:
    prior = model()
    tokens, labels = examples(prior)
    engine, positions = DecodingEngine(prior), prior.position_tables.on(CPU)
    cache = engine.new_cache(3)
    engine.extend(tokens[:, :-1], positions, cache, labels)
    with pytest.raises(DataError, match="more codes than an image has"):
        engine.extend(tokens[:, -1:], positions.part(15, 16), cache)
    with pytest.raises(DataError, match=r"17(.|\n)*16"):
        engine.extend(tokens, positions, engine.new_cache(3), labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_s_logits_hardly_depend_on_the_other_rows(dtype: torch.dtype) -> None:
    prior = model(**WIDE).to(dtype)
    tokens, labels = examples(prior, batch=40)
    engine, tolerance = DecodingEngine(prior), 2e-5 if dtype == torch.float32 else 0.1
    together = cached_logits(engine, tokens, labels, given=3)
    for rows in (slice(0, 1), slice(5, 8), slice(7, 40)):
        part = cached_logits(engine, tokens[rows], labels[rows], given=3)
        assert all(torch.allclose(a, b[rows], rtol=0, atol=tolerance) for a, b in zip(part, together, strict=True))


def test_long_inputs_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = model()
    tokens, labels = examples(prior, batch=7)
    whole = cached_logits(DecodingEngine(prior), tokens, labels, given=9)
    monkeypatch.setattr("stage2_prior.decoding.engine._MOST_TOKENS", 25)
    parts = cached_logits(DecodingEngine(prior), tokens, labels, given=9)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(whole, parts, strict=True))


def drawn(prior: PriorModel) -> torch.Tensor:
    """Codes of six images, with guidance."""
    labels, uniforms = torch.arange(6) % 4, stream_uniforms(range(6), prior.n_codes)
    return decode_codes(prior, labels, uniforms, SamplingConfig(guidance_scale=2.0))


def test_drawing_sees_every_change_of_the_weights() -> None:
    prior = model()
    seen = [drawn(prior)]
    prior.blocks[0].attention.qkv.weight.data.mul_(0)  # torch does not count this one
    seen.append(drawn(prior))
    with torch.no_grad():
        prior.head.weight.neg_()
    seen.append(drawn(prior))
    other = model()
    torch.nn.init.normal_(other.code_embedding.weight, std=0.5)
    prior.load_state_dict(other.state_dict())  # as an average is swapped in
    seen.append(drawn(prior))
    prior.norm.weight.data = torch.linspace(0, 2, 32)
    seen.append(drawn(prior))
    assert all(not torch.equal(one, other) for one, other in pairwise(seen))


class Doubled(nn.Module):
    """Another module instead of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)


def test_drawing_sees_hooks_and_other_modules() -> None:
    prior = model()
    plain = drawn(prior)
    handle = prior.blocks[1].feed_forward.register_forward_hook(lambda module, given, output: 3 * output)
    hooked = drawn(prior)
    handle.remove()
    assert not torch.equal(hooked, plain) and torch.equal(drawn(prior), plain)
    prior.blocks[2].attention.out = Doubled(prior.blocks[2].attention.out)
    swapped = drawn(prior)
    assert not torch.equal(swapped, plain)
    tokens, labels = examples(prior)
    full = prior(tokens, labels)
    assert all(
        torch.allclose(logits, full[:, t], atol=2e-5)
        for t, logits in enumerate(cached_logits(DecodingEngine(prior), tokens, labels, 0))
    )


def test_drawing_sees_adapters() -> None:
    prior = model()
    plain = drawn(prior)
    add_adapters(prior, LoRAConfig(rank=2))
    assert torch.equal(drawn(prior.eval()), plain), "B is zero at first"
    for module in prior.modules():
        if isinstance(module, LoraLayer):
            torch.nn.init.normal_(module.lora_B["default"].weight)
    assert not torch.equal(drawn(prior), plain)


@pytest.mark.parametrize("change", ["hook", "module"])
def test_what_a_forward_pass_would_not_see_is_refused_by_name(change: str) -> None:
    prior = model()
    if change == "hook":
        prior.blocks[1].attention.q_norm.register_forward_hook(lambda *given: None)
    else:
        prior.blocks[1].attention.q_norm = Doubled(nn.Identity())
    with pytest.raises(ConfigError, match=r"prior\.blocks\.1\.attention\.q_norm"):
        engine_for(prior)


def test_a_prior_in_training_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"prior(.|\n)*training mode(.|\n)*prior\.eval\(\)"):
        drawn(model().train())


def test_weights_are_packed_for_a_drawing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundation.training.linear._has_slow_products", lambda: can_pack(CPU))
    prior = model(**WIDE)
    expected = decode_codes(prior, torch.arange(4), stream_uniforms(range(4), 16), SamplingConfig())
    prior.head.weight.data.neg_()
    changed = decode_codes(prior, torch.arange(4), stream_uniforms(range(4), 16), SamplingConfig())
    assert not torch.equal(changed, expected) and prior.head.packed is None
    monkeypatch.setattr("foundation.training.linear._has_slow_products", lambda: False)
    assert torch.equal(decode_codes(prior, torch.arange(4), stream_uniforms(range(4), 16), SamplingConfig()), changed)


def test_bf16_stays_near_float32() -> None:
    prior = model(**WIDE)
    tokens, labels = examples(prior)
    exact = cached_logits(DecodingEngine(prior), tokens, labels, 2)
    rounded = cached_logits(DecodingEngine(prior.bfloat16()), tokens, labels, 2)
    scale = max(float(each.abs().max()) for each in exact)
    assert all((a - b).abs().max() < 0.05 * scale for a, b in zip(exact, rounded, strict=True))


def test_rows_of_a_cache_share_its_memory() -> None:
    cache = KVCache(torch.zeros(1, 2, 4, 2, 3, 4))
    cache.rows(1, 3).kv.fill_(1)
    assert cache.kv[:, :, 1:3].all() and not cache.kv[:, :, 0].any() and not cache.kv[:, :, 3].any()
    assert MASKED == -1
