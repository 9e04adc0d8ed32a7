"""Latents of continuous tokenizers as codes: the bits of float16 numbers, a channel at each depth of a grid."""

from __future__ import annotations

import torch

from foundation.errors import DataError

N_CODES = 1 << 16
"""codebook size of a channel"""


def codes_of(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) floating point => (B, H, W, C) int64 codes; rounds to float16.

    Raises:
        DataError: values that float16 cannot hold.
    """
    halves = latents_BCHW.permute(0, 2, 3, 1).contiguous().to(torch.float16)
    finite, found = bool(halves.isfinite().all()), f"up to {float(latents_BCHW.abs().max()):.3g}"
    DataError.unless(finite, "hold values beyond float16", field="latents", found=found, expected="at most 65,504")
    return bits_of(halves)


def bits_of(halves: torch.Tensor) -> torch.Tensor:
    """Float16 numbers => their bits, int64 from 0 to 65,535, of the same shape."""
    return halves.contiguous().view(torch.int16).long() & (N_CODES - 1)


def values_of(codes: torch.Tensor) -> torch.Tensor:
    """Codes, integers from 0 to 65,535 => float32 numbers, of the same shape."""
    return codes.to(torch.int32).to(torch.int16).contiguous().view(torch.float16).float()


def latents_of(codes_BHWC: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) codes => (B, C, H, W) float32; the inverse of ``codes_of`` but for rounding.

    Raises:
        DataError: codes that are no finite numbers.
    """
    latents_BHWC = values_of(codes_BHWC)
    finite, expected = bool(latents_BHWC.isfinite().all()), "the bits of finite float16 numbers"
    DataError.unless(finite, "are no finite latents", field="codes", expected=expected)
    return latents_BHWC.permute(0, 3, 1, 2).contiguous()
