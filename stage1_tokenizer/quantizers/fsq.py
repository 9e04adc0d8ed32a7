"""Finite scalar quantization: every channel is bounded and rounded; the codebook is their product, nothing to learn.

Source: Mentzer, Minnen, Agustsson and Tschannen 2023, arXiv:2309.15505, section 3.1 and appendix A.1.
"""

from __future__ import annotations

import math

import torch

from stage1_tokenizer.quantizers.base import Quantized, Quantizer, straight_through, without_autocast
from stage1_tokenizer.quantizers.config import FSQConfig

_EPSILON = 1e-3  # keeps the bounded value strictly inside the outermost rounding cells


class FSQ(Quantizer):
    """Rounds channel c to one of ``levels[c]`` equally spaced values in [-1, 1].

    A code is the mixed-radix number of the channels' level indices, the first channel being the fastest digit.
    """

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.levels = config.levels
        self.width = config.width
        self.codebook_size = config.codebook_size

    def forward(self, latents_BCHW: torch.Tensor) -> Quantized:
        """Quantize; the gradient of the rounding is one, that of the bounding is exact."""
        with without_autocast(latents_BCHW):
            bounded = self._bound(latents_BCHW.float())
            indices = self._indices(bounded)
            steps = self._column(self._half_steps(), bounded)
            quantized = straight_through(bounded / steps, self._values(indices))
            return Quantized(quantized, self._combine(indices))

    def encode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents => (B, H, W) codes."""
        with without_autocast(latents_BCHW):
            return self._combine(self._indices(self._bound(latents_BCHW.float())))

    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """(B, H, W) codes => (B, C, H, W) values in [-1, 1]."""
        return self._values(self._split(codes_BHW))

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"levels={self.levels}, codebook_size={self.codebook_size}"

    def _bound(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Squash channel c into an interval that holds exactly ``levels[c]`` integers."""
        half = [(level - 1) * (1 - _EPSILON) / 2 for level in self.levels]
        offset = [0.5 if level % 2 == 0 else 0.0 for level in self.levels]
        # The paper's code has tan here; atanh would put z = 0 exactly at the middle, but is undefined at L = 2.
        shift = [math.tan(o / h) for o, h in zip(offset, half, strict=True)]
        columns = (self._column(values, latents_BCHW) for values in (half, offset, shift))
        half_1C11, offset_1C11, shift_1C11 = columns
        return torch.tanh(latents_BCHW + shift_1C11) * half_1C11 - offset_1C11

    def _indices(self, bounded_BCHW: torch.Tensor) -> torch.Tensor:
        """Bounded values => level indices, int64 in [0, levels[c])."""
        lowest = self._column([level // 2 for level in self.levels], bounded_BCHW, torch.int64)
        highest = self._column([level - 1 for level in self.levels], bounded_BCHW, torch.int64)
        return torch.minimum((bounded_BCHW.round().to(torch.int64) + lowest).clamp_min(0), highest)

    def _values(self, indices_BCHW: torch.Tensor) -> torch.Tensor:
        """Level indices => values in [-1, 1], float32."""
        steps = self._column(self._half_steps(), indices_BCHW, torch.float32)
        lowest = self._column([level // 2 for level in self.levels], indices_BCHW, torch.int64)
        return (indices_BCHW - lowest).to(torch.float32) / steps

    def _combine(self, indices_BCHW: torch.Tensor) -> torch.Tensor:
        radix = self._column(self._radix(), indices_BCHW, torch.int64)
        return (indices_BCHW * radix).sum(1)

    def _split(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        codes_B1HW = codes_BHW.to(torch.int64).unsqueeze(1)
        radix = self._column(self._radix(), codes_B1HW, torch.int64)
        levels = self._column(list(self.levels), codes_B1HW, torch.int64)
        return codes_B1HW // radix % levels

    def _half_steps(self) -> list[float]:
        return [float(level // 2) for level in self.levels]

    def _radix(self) -> list[int]:
        return [math.prod(self.levels[:i]) for i in range(self.width)]

    @staticmethod
    def _column(values: list[float] | list[int], like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Per-channel numbers as (1, C, 1, 1): recomputed, so that no table can be lost when a model is loaded."""
        return torch.tensor(values, device=like.device, dtype=dtype or like.dtype).view(1, -1, 1, 1)
