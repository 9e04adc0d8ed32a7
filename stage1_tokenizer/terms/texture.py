"""Energies of local frequency bands: a reconstruction is to have as much fine texture as its image, wherever it lies.

A pixel loss alone smooths whatever the codes do not tell. Here the amplitudes of fixed filters are compared, not their
phases: the form of Heeger and Bergen 1995 (SIGGRAPH, section 3) and of Gatys et al. 2015, arXiv:1505.07376, with the
filters of a discrete cosine transform and within small windows.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from foundation.config import require
from foundation.randomness import derive_seed
from stage1_tokenizer.terms.base import Metrics, Seen, Term, TermContext
from stage1_tokenizer.terms.config import TextureConfig

_STRIDE = 2
"""pixels between filtered positions"""
_FLOOR = 1e-3
"""added to energies: the amplitude below which bands hardly count is its root"""


class Texture(Term):
    """Mean squared difference of the amplitudes of each channel's frequency bands in each window."""

    judges_reconstructions = True
    config: TextureConfig

    def __init__(self, config: TextureConfig, context: TermContext) -> None:
        super().__init__(config, context)
        preprocess, size = context.model.preprocess, config.filter_size
        side = min(preprocess.height, preprocess.width)
        most, fix = side - size + _STRIDE, "or take a smaller filter_size"
        require(config.window <= most, "window", config.window, f"{most} or less for images of {side} pixels", fix)
        self.seed, self.process = context.seed, context.accelerator.process_index
        self.filters = cosine_filters(config.filter_size).to(context.accelerator.device)

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, Metrics]:
        """See the base class."""
        rows, columns = (self._part(length, seen.step, axis) for axis, length in enumerate(seen.images_BCYX.shape[2:]))
        with torch.no_grad():
            wanted = self.amplitudes(seen.images_BCYX[:, :, rows, columns])
        return F.mse_loss(self.amplitudes(seen.reconstructions_BCYX[:, :, rows, columns]), wanted), {}

    def _part(self, length: int, step: int, axis: int) -> slice:
        """Pixels that a step compares along an axis: all, or ``crop`` of them, where (seed, step, process) say."""
        side = length if self.config.crop is None else min(length, self.config.crop)
        start = derive_seed(self.seed, "texture", step, self.process, axis) % (length - side + 1)
        return slice(start, start + side)

    def amplitudes(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, C, Y, X) => (B * C, bands, windows down, windows across): roots of mean squares."""
        filters = self.filters.to(images_BCYX.dtype)
        with torch.autocast(images_BCYX.device.type, enabled=False):
            bands = F.conv2d(images_BCYX.flatten(0, 1).unsqueeze(1), filters, stride=_STRIDE)
            window = self.config.window // _STRIDE
            return (F.avg_pool2d(bands.square(), window, max(1, window // 2)) + _FLOOR).sqrt()


def cosine_filters(size: int) -> torch.Tensor:
    """The two-dimensional DCT-II of a square of pixels without its mean: (size^2 - 1, 1, size, size), orthonormal."""
    place = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(torch.pi * (2 * place + 1) * place[:, None] / (2 * size)) * (2 / size) ** 0.5
    rows[0] /= 2**0.5
    return torch.einsum("ay,bx->abyx", rows, rows).flatten(0, 1)[1:, None].float()
