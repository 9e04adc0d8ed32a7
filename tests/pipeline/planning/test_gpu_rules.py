"""Meta tensors go through models as CUDA tensors would."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.planning.gpu_rules import as_on_gpu
from pipeline.planning.trace import Trace

META = torch.device("meta")


def test_autocast_takes_16_bits_for_products_and_32_for_norms() -> None:
    with torch.device(META):
        conv, norm, x = nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), torch.empty(2, 8, 8, 8)
    with as_on_gpu():
        with torch.autocast("meta", dtype=torch.bfloat16):
            assert torch.is_autocast_enabled("meta") and torch.get_autocast_dtype("meta") == torch.bfloat16
            assert conv(x).dtype == torch.bfloat16
            assert norm(conv(x)).dtype == F.silu(norm(conv(x))).dtype == torch.float32
            assert (x.flatten(2) @ x.flatten(2).mT).dtype == torch.bfloat16
            with torch.autocast("meta", enabled=False):
                assert conv(x).dtype == torch.float32
        assert conv(x).dtype == torch.float32


def test_weights_are_cast_once_and_their_copies_let_go() -> None:
    with torch.device(META):
        layer, x = nn.Linear(64, 64), torch.empty(1, 64)
    with as_on_gpu(), Trace() as trace:
        with torch.autocast("meta", dtype=torch.bfloat16), torch.no_grad():
            for _ in range(3):
                layer(x)
            assert 2 * 64 * 64 < trace.live["other"] < 2 * 2 * 64 * 64
        assert trace.live["other"] == 0


def test_attention_keeps_no_scores_and_dropout_a_byte_a_value() -> None:
    T, K = 256, 64
    with as_on_gpu(), Trace() as trace:
        q = torch.empty(1, 1, T, K, device="meta", requires_grad=True)
        before = trace.live["other"]
        out = F.scaled_dot_product_attention(q, q, q, is_causal=True)
        assert out.shape == q.shape and trace.live["other"] - before < 4 * T * (K + 4)
        before = trace.live["other"]
        dropped = F.dropout(out, 0.1, training=True)
        assert trace.live["other"] - before == 5 * T * K and dropped.dtype == out.dtype
        dropped.sum().backward()
        assert q.grad is not None


def test_what_is_recomputed_has_the_same_types() -> None:
    with torch.device(META):
        layer, x = nn.Linear(8, 8), torch.empty(4, 8, requires_grad=True)
    with as_on_gpu():
        with torch.autocast("meta", dtype=torch.bfloat16):
            out = checkpoint(layer, x, use_reentrant=False)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad is not None


def test_autocast_elsewhere_is_torchs_own_and_all_is_put_back() -> None:
    before = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
    with as_on_gpu(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("meta")
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.bfloat16
    assert (torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype) == before
