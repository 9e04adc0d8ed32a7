"""Options that published priors need: blocks as in GPT-2, a class without rotation, codes beyond the codebook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.random_prior import LEVELS, cached_logits, decode_codes, examples, model, with_norm_weights
from torch.nn import functional as F

from foundation.config_fields import without_defaults
from foundation.errors import ConfigError
from foundation.training.config import OptimConfig
from foundation.training.optim import adamw
from stage2_prior.block import Block, LayerNorm, split_heads
from stage2_prior.config import PriorConfig
from stage2_prior.cpu_kernels import EPSILON, product_type
from stage2_prior.decoding.decode import stream_uniforms
from stage2_prior.decoding.engine import DecodingEngine
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss

GPT = {"block": "gpt", "positions": "learned", "qk_norm": False}


def random_block(**options: object) -> Block:
    """With weights, biases and norms that are all random."""
    prior = model(**options)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    block = prior.blocks[0]
    assert isinstance(block, Block)
    return block.double()


def test_a_gpt_block_is_its_formula() -> None:
    """LayerNorm, biased projections, softmax(q k' / sqrt(K)) v over what came before, x * Phi(x): written out."""
    block, x = random_block(**GPT), torch.randn(2, 7, 32, dtype=torch.float64)
    weights = dict(block.named_parameters())

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    q, k, v = (
        each.unflatten(-1, (4, 8)).transpose(1, 2)
        for each in linear(norm(x, "attention_norm"), "attention.qkv").chunk(3, -1)
    )
    unseen = torch.ones(7, 7, dtype=torch.bool).triu(1)
    attended = (q @ k.mT / 8**0.5).masked_fill(unseen, -torch.inf).softmax(-1) @ v
    y = x + linear(attended.transpose(1, 2).flatten(2), "attention.out")
    hidden = linear(norm(y, "feed_forward_norm"), "feed_forward.up")
    y = y + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, "feed_forward.down")
    assert torch.allclose(block(x, None), y, rtol=0, atol=1e-6)


def test_layer_norm_gives_what_products_read() -> None:
    layer, x = LayerNorm(8), 3 + torch.randn(3, 8)
    assert torch.allclose(layer(x), F.layer_norm(x, (8,), eps=EPSILON))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == product_type(x) == torch.bfloat16


def test_gpt_blocks_train() -> None:
    """Every parameter has a gradient; biases and norms, which begin at 0 and 1, have no weight decay."""
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=4, block="gpt"), model().spec)
    assert prior.config.feed_forward_width == 128
    for name, parameter in prior.named_parameters():
        assert parameter.ndim > 1 or torch.all(parameter == (0 if name.endswith("bias") else 1)), name
    tokens, labels = examples(prior)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = PriorLoss(prior.train())(tokens, labels)
    loss.backward()
    torch.nn.init.normal_(prior.head.weight)
    PriorLoss(prior)(tokens, labels)[0].backward()
    decayed = {id(each) for each in adamw(prior, OptimConfig(weight_decay=0.1)).param_groups[0]["params"]}
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
        plain = (name.startswith("blocks.") and parameter.ndim == 2) or name == "head.weight"
        assert (id(parameter) in decayed) == plain, name


def test_every_code_scores_an_unrotated_class_with_0() -> None:
    """Its query and key are zero and its value is as it was; all other tokens are as without the option."""
    plain, zero = (model(class_rotation=each, qk_norm=False) for each in ("identity", "zero"))
    qkv = torch.randn(2, plain.n_codes, 96)
    one, other = (split_heads(qkv, 4, None, each.position_tables.on(qkv.device).rope) for each in (plain, zero))
    for i in range(2):
        assert other[i][:, :, 0].abs().max() == 0 and one[i][:, :, 0].abs().max() > 0
        assert torch.equal(one[i][:, :, 1:], other[i][:, :, 1:])
    assert torch.equal(one[2], other[2])
    tokens, labels = examples(plain)
    assert float((plain(tokens, labels) - zero(tokens, labels)).detach().abs().max()) > 1e-3


def test_zero_rotation_needs_rotations() -> None:
    with pytest.raises(ConfigError, match="class_rotation"):
        PriorConfig(class_rotation="zero", positions="learned")


def test_a_prior_without_its_extra_codes() -> None:
    """It gives the codebook's codes the probs that they had among themselves, and draws no other."""
    prior = with_norm_weights(model(extra_codes=6, **GPT))
    assert prior.vocab_size == 35 and prior.code_embedding.num_embeddings == 35
    kept = prior.within_codebook()
    assert kept.vocab_size == 29 and not kept.training and kept.within_codebook() is kept
    tokens, labels = examples(prior)
    assert torch.allclose(kept(tokens, labels), prior(tokens, labels)[..., :29], atol=1e-5)
    uniforms = stream_uniforms(list(range(3)), prior.n_codes)
    hot = SamplingConfig(temperature=9.0)
    assert (
        int(decode_codes(prior, labels, uniforms, hot).max())
        >= 29
        > int(decode_codes(kept, labels, uniforms, hot).max())
    )
    with pytest.raises(ConfigError, match="extra_codes"):
        model(LEVELS[3], extra_codes=1)


@pytest.mark.parametrize("options", [GPT, {"block": "gpt"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_gpt_hardly_depends_on_the_other_rows(dtype: torch.dtype, options: dict) -> None:
    prior = with_norm_weights(model(d_model=64, n_heads=2, d_ff=1408, **options)).to(dtype)
    tokens, labels = examples(prior, batch=40)
    engine, tolerance = DecodingEngine(prior), 2e-5 if dtype == torch.float32 else 0.1
    together = cached_logits(engine, tokens, labels, 3)[1]
    for rows in (slice(0, 2), slice(5, 8), slice(7, 40)):
        alone = cached_logits(engine, tokens[rows], labels[rows], 3)[1]
        assert torch.allclose(alone, together[rows], rtol=0, atol=tolerance)


def test_priors_saved_before_these_options_keep_their_meaning(tmp_path: Path) -> None:
    later = {"block", "class_rotation", "extra_codes"}
    assert not later & without_defaults(PriorConfig()).keys() and later < PriorConfig.__dataclass_fields__.keys()
    prior = model()
    prior.save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["prior"] = {name: each for name, each in values["prior"].items() if name not in later}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert PriorModel.load(tmp_path).config == prior.config
