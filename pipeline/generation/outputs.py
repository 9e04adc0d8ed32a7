"""What a generator hands out, and how codes become pictures of the type that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from foundation.images.preprocess import image_grid, to_pil, to_uint8

_DECODE_BYTES = 1 << 30
BYTES_PER_PIXEL = 6 * 128 * 4
"""A decoder's memory at its widest: about six maps of 128 channels at full resolution, float32."""
_MOST_DECODED = 64


class Decoder(Protocol):
    """The part of a tokenizer that makes pixels."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes => (B, C, Y, X), nominally in [-1, 1]."""


@dataclass(frozen=True)
class GeneratorOutput:
    """New images.

    Attributes:
        images: a list of Pillow images ("pil"), (B, Y, X, C) float32 in [0, 1] ("np"), (B, C, Y, X) float32 in
            [-1, 1] ("pt"), or the codes ("latent").
        codes: int64, as the tokenizer's: (B, H, W), (B, H, W, D) for depth D, or (B, T) for several levels.
        labels: the class number of each image, None for none.
        seeds: the seed of each image; the same call with the same seed and label gives the same image, with
            ``best_of`` also without a choice, but of ``vary`` only with the same choice. Of ``interpolate`` those of
            the two ends, if they are seeds.
    """

    images: Any
    codes: torch.Tensor
    labels: list[int | None]
    seeds: list[int]


def decode_batch(n_pixels: int) -> int:
    """Images of so many pixels to decode at once: as many as a GiB of activations holds, 1 to 64."""
    return min(_MOST_DECODED, max(1, _DECODE_BYTES // (n_pixels * BYTES_PER_PIXEL)))


def decoded(tokenizer: Decoder, codes: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Codes in a tokenizer's layout => (B, C, Y, X) float32 in [-1, 1], a batch at a time."""
    return torch.cat([tokenizer.decode(part).clamp_(-1, 1) for part in codes.split(batch_size)])


def pictures(images_BCYX: torch.Tensor, output_type: str) -> Any:
    """Images in [-1, 1] as "pil", "np" or "pt"; see ``GeneratorOutput.images``."""
    if output_type == "pt":
        return images_BCYX
    pixels_BYXC = to_uint8(images_BCYX)
    if output_type == "np":
        return pixels_BYXC.astype(np.float32) / 255
    return [to_pil(each) for each in pixels_BYXC]


def grid_image(images: list[Image.Image], n_columns: int) -> Image.Image:
    """Images side by side, enlarged so that small ones can be seen."""
    first = images[0]
    pixels = np.stack([np.asarray(each).reshape(each.height, each.width, -1) for each in images])
    return image_grid(pixels, n_columns, scale=max(1, 64 // max(first.size)))
