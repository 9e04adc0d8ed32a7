"""GroupNorm, swish and the convolution behind them as one step of differentiation.

Plain modules keep three tensors per convolution (the norm's input, its output, the swish's output), on a GPU two of
them in float32 under autocast; and on a CPU the library's backward of GroupNorm is many times slower in channels-last
memory than the arithmetic needs. Here only the input is kept; its normalized form is computed again in the backward
pass (Chen et al. 2016, arXiv:1604.06174), and the gradient of the norm (Wu and He 2018, arXiv:1803.08494) is written as
two sums and one scaled addition.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_SLOW_CHANNELS_LAST_PIXELS = 1024
"""below this the library's forward pass of a channels-last GroupNorm is several times slower than a contiguous one"""


def norm_silu_conv(norm: nn.GroupNorm, conv: nn.Conv2d, x_BCHW: torch.Tensor) -> torch.Tensor:
    """``conv(silu(norm(x)))``: (B, C_in, H, W) => (B, C_out, H, W), in autocast's type if autocast is on.

    Args:
        norm: with scale and shift.
        conv: of stride 1, with a bias or without.
        x_BCHW: input; in training, all that is kept for the backward pass.
    """
    if torch.compiler.is_compiling():  # a compiler fuses the plain modules, and chooses what to compute again
        return conv(F.silu(norm(x_BCHW)))
    dtype = type_of_products(x_BCHW)
    assert conv.stride == (1, 1)
    kernel, bias = conv.weight.to(dtype), None if conv.bias is None else conv.bias.to(dtype)
    device = x_BCHW.device.type
    with torch.autocast(device, enabled=False) if _knows_autocast(device) else contextlib.nullcontext():
        return _NormSiluConv.apply(x_BCHW.to(dtype), norm.weight, norm.bias, kernel, bias, norm, conv.padding)  # type: ignore[no-any-return]


def type_of_products(x: torch.Tensor) -> torch.dtype:
    """Type in which a convolution computes with ``x``: autocast's where it is on, else that of ``x``."""
    device = x.device.type
    lowered = _knows_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if lowered else x.dtype


def _knows_autocast(device: str) -> bool:
    return device != "meta" and torch.amp.is_autocast_available(device)


class _NormSiluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: torch.Tensor,
        scale_C: torch.Tensor,
        shift_C: torch.Tensor,
        kernel: torch.Tensor,
        bias_C: torch.Tensor | None,
        norm: nn.GroupNorm,
        padding: tuple[int, int],
    ) -> torch.Tensor:
        ctx.n_groups, ctx.eps, ctx.padding, ctx.has_bias = norm.num_groups, norm.eps, padding, bias_C is not None
        ctx.save_for_backward(x_BCHW, scale_C, shift_C, kernel)
        normed, _, _ = _normalize(x_BCHW, scale_C, shift_C, norm.num_groups, norm.eps)
        return F.conv2d(F.silu(normed, inplace=True), kernel, bias_C, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_BCHW, scale_C, shift_C, kernel = ctx.saved_tensors
        normed, mean_BG, rstd_BG = _normalize(x_BCHW, scale_C, shift_C, ctx.n_groups, ctx.eps)
        bias_sizes, ones, needed = [len(gradient[0])], [1, 1], [True, True, ctx.has_bias]
        to_x, to_kernel, to_bias = torch.ops.aten.convolution_backward(
            gradient, F.silu(normed), kernel, bias_sizes, ones, ctx.padding, ones, False, [0, 0], 1, needed
        )
        torch.ops.aten.silu_backward.grad_input(to_x, normed, grad_input=to_x)
        to_scale, to_shift = _normalize_backward_(to_x, x_BCHW, mean_BG, rstd_BG, scale_C)
        return to_x, to_scale, to_shift, to_kernel, to_bias, None, None


def _normalize(
    x_BCHW: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, n_groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GroupNorm with the mean and the inverse deviation of each group, (B, G); the result has the memory of x."""
    B, C, H, W = x_BCHW.shape
    if x_BCHW.device.type == "cpu":
        dense = x_BCHW.contiguous() if H * W < _SLOW_CHANNELS_LAST_PIXELS else x_BCHW
    else:  # elsewhere the library wants one type, contiguous; statistics of 16 bits would be too coarse
        wide = torch.promote_types(x_BCHW.dtype, torch.float32)
        dense, scale_C, shift_C = x_BCHW.to(wide).contiguous(), scale_C.to(wide), shift_C.to(wide)
    normed, mean_BG, rstd_BG = torch.ops.aten.native_group_norm(dense, scale_C, shift_C, B, C, H * W, n_groups, eps)
    return _in_memory_of(x_BCHW, normed.to(x_BCHW.dtype)), mean_BG, rstd_BG


def _normalize_backward_(
    gradient: torch.Tensor, x_BCHW: torch.Tensor, mean_BG: torch.Tensor, rstd_BG: torch.Tensor, scale_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """From the gradient to GroupNorm's result to that of its input, in place; returns those to scale and shift.

    With n values in a group and c = x - mean, y = scale * c * rstd + shift has
    dx = rstd * scale * dy + slope * c + constant, where slope = -rstd^3 / n * sum(scale * dy * c) and
    constant = -rstd / n * sum(scale * dy), with sums over the group. The mean is subtracted first: products with x
    itself would cancel badly in bf16 where the mean is large beside the deviation.
    """
    B, C, H, W = x_BCHW.shape
    n_groups, stats = mean_BG.shape[1], mean_BG.dtype
    per_channel = C // n_groups
    mean_BC, rstd_BC = (each.repeat_interleave(per_channel, 1) for each in (mean_BG, rstd_BG))
    rounded_BC = mean_BC.to(x_BCHW.dtype)
    centred = x_BCHW - rounded_BC[:, :, None, None]
    rest_BC = mean_BC - rounded_BC.to(stats)  # what the rounded mean left in centred
    sum_BC = _sum_pixels(gradient, stats)
    product_BC = _sum_pixels(gradient * centred, stats) - rest_BC * sum_BC
    sum_BG, product_BG = ((each * scale_C).view(B, n_groups, per_channel).sum(2) for each in (sum_BC, product_BC))
    n_values = H * W * per_channel
    slope_BC = (-(rstd_BG**3) / n_values * product_BG).repeat_interleave(per_channel, 1)
    constant_BC = (-rstd_BG * sum_BG / n_values).repeat_interleave(per_channel, 1) - slope_BC * rest_BC
    factor, slope, constant = (
        each[:, :, None, None].to(x_BCHW.dtype) for each in (rstd_BC * scale_C, slope_BC, constant_BC)
    )
    to_scale_C = (product_BC * rstd_BC).sum(0)
    torch.addcmul(torch.addcmul(constant, centred, slope, out=centred), gradient, factor, out=gradient)
    return to_scale_C, sum_BC.sum(0)


def _sum_pixels(x_BCHW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, C) in ``dtype``. Of 16 bits, rows are summed by a product, and only their sums converted: 5 times as fast."""
    if x_BCHW.dtype == dtype:
        return x_BCHW.sum((2, 3))
    B, C, H, W = x_BCHW.shape
    rows = x_BCHW.permute(0, 2, 3, 1).reshape(B * H, W, C)
    return (rows.new_ones(1, 1, W).expand(B * H, 1, W) @ rows).view(B, H, C).sum(1, dtype=dtype)


def _in_memory_of(model: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    channels_last = model.is_contiguous(memory_format=torch.channels_last) and not model.is_contiguous()
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor
