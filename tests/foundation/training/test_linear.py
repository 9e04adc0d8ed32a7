"""Linear layers: oneDNN's products and gradients beside plain ones."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from foundation.training import linear as layers


@pytest.fixture(autouse=True)
def _prefer_onednn(monkeypatch: Any) -> None:
    """As on a processor whose AVX512 torch's product does not use."""
    monkeypatch.setattr(layers, "_has_slow_products", lambda: True)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("n_in", "n_out"), [(24, 40), (40, 24), (32, 32)])
def test_gradients_by_onednn_are_those_of_a_plain_layer(n_in: int, n_out: int, biased: bool) -> None:
    torch.manual_seed(0)
    layer = layers.Linear(n_in, n_out, bias=biased)
    x = torch.randn(3, 48, n_in, requires_grad=True)
    assert layers.prefers_onednn(x, layer.weight)
    y = layer(x)
    to_y = torch.randn_like(y)
    y.backward(to_y)
    leaves = [x, *layer.parameters()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact_y = F.linear(*exact)
    exact_y.backward(to_y.double())
    torch.testing.assert_close(y.double(), exact_y, atol=1e-4, rtol=1e-5)
    for leaf, same in zip(leaves, exact, strict=True):
        assert leaf.grad is not None and leaf.grad.is_contiguous()
        torch.testing.assert_close(leaf.grad.double(), same.grad, atol=1e-4, rtol=1e-5)


def test_an_expanded_gradient_is_copied_before_it_is_multiplied(monkeypatch: Any) -> None:
    factors: list[torch.Tensor] = []
    real = layers.product

    def watched(x_RK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
        factors.extend([x_RK, weight_NK])
        return real(x_RK, weight_NK, bias_N)

    monkeypatch.setattr(layers, "product", watched)
    layer = layers.Linear(24, 40, bias=False)
    x = torch.randn(48, 24)
    layer(x).sum().backward()
    assert len(factors) == 6 and not any(0 in each.stride() for each in factors)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(40, -1), atol=1e-4, rtol=1e-5)


def test_products_of_few_rows_and_of_other_types_are_plain() -> None:
    weight = torch.randn(8, 8)
    assert not layers.prefers_onednn(torch.randn(15, 8), weight)
    assert not layers.prefers_onednn(torch.randn(16, 8).double(), weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not layers.prefers_onednn(torch.randn(16, 8), weight)


@pytest.mark.parametrize("change", ["one weight", "bias", "dtype", "training"])
def test_what_was_packed_stays_until_a_bit_changes_or_the_layer_is_trained(change: str) -> None:
    if not layers.can_pack(torch.device("cpu")):
        pytest.skip("this build of torch has no oneDNN")
    layer = layers.Linear(24, 40).eval()
    x = torch.randn(3, 24)

    def packed() -> layers.PackedWeight | None:
        with torch.no_grad(), layers.packed_weights(layer):
            layer(x.to(layer.weight.dtype))
            return layer.packed

    first = packed()
    assert first is not None and packed() is first and layer.packed is None
    if change == "one weight":
        layer.weight.data[5, 7] += 1e-3
    elif change == "bias":
        layer.bias.data.neg_()
    elif change == "dtype":
        layer.bfloat16()
    else:
        layer.train().eval()
    assert packed() not in (None, first)
