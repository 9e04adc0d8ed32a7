"""CPU kernels compute what the plain formulas do, and so do their gradients."""

from collections.abc import Sequence

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from stage2_prior import block, cpu_kernels
from stage2_prior.block import RMSNorm
from stage2_prior.cpu_kernels import EPSILON
from stage2_prior.positions import Rope, grid_angles, rotation

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_(True)


def rope(length: int, width: int, batch: int = 0) -> Rope:
    tables = rotation(grid_angles(torch.arange(length) // 3, torch.arange(length) % 3, width, 100.0))
    return tables.of(torch.stack([torch.randperm(length) for _ in range(batch)])) if batch else tables


def gradients(step, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The outputs and the gradients of a fixed random weighting of them, with inputs in this type."""
    inputs = [each.detach().to(dtype).requires_grad_(True) for each in inputs]
    outputs = step(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(each.shape, generator=generator).to(each) for each in outputs]
    loss = sum((each * weight).sum() for each, weight in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(loss, inputs)]


def assert_equal_steps(step, plain, inputs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Ours in this type against the formula in float64, relative to the size of each result."""
    assert_near(gradients(step, inputs, dtype), gradients(plain, inputs, torch.float64), dtype)


def assert_near(all_found: Sequence[torch.Tensor], all_expected: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
    for found, expected in zip(all_found, all_expected, strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def plain_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight


def plain_rotation(x: torch.Tensor, tables: Rope) -> torch.Tensor:
    """By 2 x 2 matrices."""
    cos, sin = tables.cos[..., 1::2], tables.sin[..., 1::2]
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(torch.ones(q.shape[2], q.shape[2]).triu(1) > 0, -torch.inf)
    return scores.softmax(-1) @ v


@BOTH
def test_rms_norm(dtype: torch.dtype) -> None:
    x, weight = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 5, 12), (12,)))
    layer = RMSNorm(12).to(dtype)
    layer.load_state_dict({"weight": weight})
    assert_equal_steps(lambda x, w: functional_call(layer, {"weight": w}, x), plain_norm, [x, weight], dtype)
    with torch.no_grad():
        assert_near([layer(x.to(dtype))], [plain_norm(x, weight)], dtype)


def test_rms_norm_gives_what_products_read() -> None:
    layer, x = RMSNorm(8), torch.randn(3, 8)
    assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert torch.allclose(layer(x), F.rms_norm(x, (8,), None, EPSILON), atol=1e-6)


@BOTH
def test_swiglu(dtype: torch.dtype) -> None:
    def plain(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return gate * gate.sigmoid() * up

    inputs = [leaf(2, 3, 20)]
    assert_equal_steps(block.swiglu, plain, inputs, dtype)
    with torch.no_grad():
        assert_near([block.swiglu(inputs[0].to(dtype))], [plain(*inputs)], dtype)


@BOTH
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("rotated", ["not", "alike", "by image"])
def test_split_heads(dtype: torch.dtype, normalised: bool, rotated: str) -> None:
    tables = {"not": None, "alike": rope(6, 8), "by image": rope(6, 8, batch=2)}[rotated]

    def plain(qkv: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (each.unflatten(-1, (3, 8)).transpose(1, 2) for each in qkv.chunk(3, -1))
        if weights:
            q, k = plain_norm(q, weights[0]), plain_norm(k, weights[1])
        return (q, k, v) if tables is None else (plain_rotation(q, tables), plain_rotation(k, tables), v)

    def step(qkv: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return block.split_heads(qkv, 3, weights or None, tables)

    inputs = [leaf(2, 6, 72), *([leaf(8), leaf(8)] if normalised else [])]
    assert_equal_steps(step, plain, inputs, dtype)
    with torch.no_grad():
        assert_near(step(*(each.to(dtype) for each in inputs)), plain(*inputs), dtype)


@BOTH
@pytest.mark.parametrize("length", [1, 7, 128, 150, 300])
def test_causal_attention(dtype: torch.dtype, length: int) -> None:
    """One block of queries, two, and three of which the last is short."""
    inputs = [leaf(1, 2, length, 8) for _ in range(3)]
    assert_equal_steps(block.attention, plain_attention, inputs, dtype)


def test_gradients_of_all_steps_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_QUERIES", 3)
    norm = RMSNorm(4).double()
    assert torch.autograd.gradcheck(lambda x, w: functional_call(norm, {"weight": w}, x), (leaf(2, 3, 4), leaf(4)))
    assert torch.autograd.gradcheck(block.swiglu, (leaf(2, 6),))
    tables = rope(4, 4)
    step = lambda qkv, q, k: block.split_heads(qkv, 2, (q, k), tables)  # noqa: E731
    assert torch.autograd.gradcheck(step, (leaf(2, 4, 24), leaf(4), leaf(4)), atol=1e-4)
    assert torch.autograd.gradcheck(block.attention, tuple(leaf(1, 2, 5, 4) for _ in range(3)))


def test_attention_dropout_zeroes_weights_and_its_gradient_sees_the_same_ones() -> None:
    """With values that are one-hot the output is the dropped weights themselves."""
    q, k = 0.3 * torch.randn(2, 1, 2, 200, 200)
    v = torch.eye(200).expand(1, 2, 200, 200).clone().requires_grad_(True)
    kept = block.attention(q, k, v.detach(), 0.0)
    dropped = block.attention(q, k, v, 0.25)
    seen = torch.ones(200, 200).tril().bool().expand_as(kept)
    zero = (dropped == 0)[seen]
    assert 0.24 < zero.float().mean() < 0.26
    assert torch.allclose(dropped[seen][~zero], kept[seen][~zero] / 0.75, rtol=1e-3)
    (gradient,) = torch.autograd.grad(dropped.sum(), v)
    assert torch.allclose(gradient[..., 0], dropped.detach().sum(2), atol=1e-5)


def test_attention_dropout_differentiates_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """gradcheck draws the same masks again, because every call starts at the same seed."""
    monkeypatch.setattr(cpu_kernels, "_QUERIES", 3)
    norm = RMSNorm(4).double()
    assert torch.autograd.gradcheck(lambda x, w: functional_call(norm, {"weight": w}, x), (leaf(2, 3, 4), leaf(4)))
    assert torch.autograd.gradcheck(block.swiglu, (leaf(2, 6),))

    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return block.attention(q, k, v, 0.3)

    assert torch.autograd.gradcheck(step, tuple(leaf(1, 1, 5, 4) for _ in range(3)))
