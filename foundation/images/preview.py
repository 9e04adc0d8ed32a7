"""Previews: what a screen shows of images of any channels and bits, the same for originals and reconstructions.

Opacity is shown on a checkerboard. Of more channels, three are shown as red, green and blue, or one as grey. Values
become 8 bits linearly: black to white, or for dark images between two values that are found once and kept with the
tokenizer (``Stretch``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from foundation.images.config import Preprocess
from foundation.images.preprocess import require_pixels, to_pixels

SQUARE = 8
"""side of a square of the checkerboard, pixels"""
_LIGHT, _DARK = 255, 204
_PERCENTILES = (0.5, 99.5)
_DIM = 0.5
"""images whose bright values are below this share of white are stretched"""
_LEAST = 1 / 4096
"""smallest share of the range that is stretched to all of it"""


@dataclass(frozen=True)
class Stretch:
    """The values that a preview shows as black and as white, as shares of the range, from 0 to 1."""

    low: float = 0.0
    high: float = 1.0


def find_stretch(pixels_BYXC: np.ndarray, preprocess: Preprocess) -> Stretch:
    """The stretch for some typical images: none, unless their bright values are below half of white.

    Args:
        pixels_BYXC: images; their shown channels count.
        preprocess: of the images. RGB, grey and RGBA of 8 bits are never stretched.
    """
    if preprocess.bits == 8 and preprocess.mode != "channels":
        return Stretch()
    shown = pixels_BYXC[..., : 3 if preprocess.mode == "RGBA" else None]
    shown = shown[..., list(shown_channels(preprocess))] if preprocess.mode == "channels" else shown
    low, high = (float(each) / preprocess.top_level for each in np.percentile(shown, _PERCENTILES))
    return Stretch() if high >= _DIM else Stretch(round(low, 6), round(max(high, low + _LEAST), 6))


@dataclass(frozen=True)
class Preview:
    """Makes previews.

    Args:
        preprocess: of the images.
        stretch: which values are black and white.
    """

    preprocess: Preprocess
    stretch: Stretch = Stretch()

    def __call__(self, pixels_BYXC: np.ndarray) -> np.ndarray:
        """(B, Y, X, C) pixels => (B, Y, X, 1 or 3) uint8. RGB and grey of 8 bits are returned themselves.

        Raises:
            DataError: not pixels of these channels.
        """
        require_pixels("images_BYXC", pixels_BYXC, 4)
        if self.preprocess.is_plain:
            return pixels_BYXC
        top = 255 if pixels_BYXC.dtype == np.uint8 else 65_535
        if self.preprocess.mode == "RGBA":
            colours = self._stretched(pixels_BYXC[..., :3], top)
            alpha = pixels_BYXC[..., 3:] / np.float32(top)
            return np.rint(colours * alpha + checkerboard(*pixels_BYXC.shape[1:3]) * (1 - alpha)).astype(np.uint8)
        shown = pixels_BYXC[..., list(shown_channels(self.preprocess))]
        return np.rint(self._stretched(shown, top)).astype(np.uint8)

    def of_images(self, images_BCYX: torch.Tensor) -> np.ndarray:
        """(B, C, Y, X) in [-1, 1] => (B, Y, X, 1 or 3) uint8."""
        return self(to_pixels(images_BCYX, self.preprocess.bits))

    def _stretched(self, pixels: np.ndarray, top: int) -> np.ndarray:
        """Values from black to white as float32 from 0 to 255."""
        low, high = self.stretch.low * top, self.stretch.high * top
        return ((pixels.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255)


def checkerboard(height: int, width: int) -> np.ndarray:
    """(Y, X, 1) float32: light and dark grey squares."""
    y, x = np.mgrid[0:height, 0:width] // SQUARE
    return np.where((y + x) % 2, _DARK, _LIGHT).astype(np.float32)[..., None]


def shown_channels(preprocess: Preprocess) -> tuple[int, ...]:
    """Numbers of the channels that are seen: three, or one."""
    if preprocess.preview_channels is not None:
        return preprocess.preview_channels
    return (0, 1, 2) if preprocess.n_channels > 2 else (0,)


def visible(images_BCYX: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """What networks for colour pictures (LPIPS, Inception) see of images: (B, 3 or 1, Y, X) in [-1, 1].

    Colours with opacity lie on middle grey; of other channels the shown ones are taken, without a stretch. RGB and grey
    are returned themselves. Differentiable.
    """
    if preprocess.mode == "RGBA":
        return images_BCYX[:, :3] * ((images_BCYX[:, 3:] + 1) / 2)
    if preprocess.mode == "channels":
        return images_BCYX[:, list(shown_channels(preprocess))]
    return images_BCYX
