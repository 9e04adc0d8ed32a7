"""Output of a generator: its fields, output types, batches of decoding, picture grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from foundation.arguments import shown
from foundation.codes.spec import CodeSpec
from foundation.errors import DataError
from foundation.images.preprocess import GRID_GAP, image_grid, to_pil, to_pixels
from foundation.images.preview import Preview
from pipeline.output_files import Outputs

_DECODE_BYTES = 1 << 30
BYTES_PER_PIXEL = 6 * 128 * 4
"""A decoder's memory at its widest: about six maps of 128 channels at full resolution, float32."""
_MOST_DECODED = 64
_GOLDEN = 0.6180339887498949  # steps of this share of a circle keep neighbouring codes' hues apart


@dataclass(frozen=True)
class GeneratorOutput:
    """The images of a call.

    Attributes:
        images: a list of Pillow images ("pil"), (B, Y, X, C) float32 in [0, 1] ("np"), (B, C, Y, X) float32 in
            [-1, 1] ("pt"), or the codes ("latent"). Pillow images have mode L, RGB, RGBA or I;16 (grey of 16 bits); of
            other channels and bits they are previews of 8 bits, and "np" (rounded to their bits) and "pt" hold all.
        codes: int64, as the tokenizer's: (B, H, W), (B, H, W, D) for depth D, or (B, T) for several levels.
        labels: the class number of each image, None for none.
        seeds: the seed of each image. The same call for one image with ``seed=seeds[i]`` and its label gives image i
            alone. With ``best_of`` it is the chosen candidate's, which gives the image without ``best_of`` (after
            ``vary``, with the same ``best_of``). After ``interpolate``: the seeds of both ends; empty between images.
    """

    images: Any
    codes: torch.Tensor
    labels: list[int | None]
    seeds: list[int]

    def to_tuple(self) -> tuple[Any, torch.Tensor, list[int | None], list[int]]:
        """The same as a tuple, images first."""
        return self.images, self.codes, self.labels, self.seeds


def decode_batch(n_pixels: int) -> int:
    """Number of images of ``n_pixels`` pixels decoded at once: those whose activations take a GiB, 1 to 64."""
    return min(_MOST_DECODED, max(1, _DECODE_BYTES // (n_pixels * BYTES_PER_PIXEL)))


def to_output_type(images_BCYX: torch.Tensor, output_type: str, preview: Preview) -> Any:
    """Images in [-1, 1] as "pil", "np" or "pt"; see ``GeneratorOutput.images``."""
    if output_type == "pt":
        return images_BCYX
    preprocess = preview.preprocess
    pixels_BYXC = to_pixels(images_BCYX, preprocess.bits)
    if output_type == "np":
        return pixels_BYXC.astype(np.float32) / preprocess.top_level
    return [to_pil(each) for each in (pixels_BYXC if preprocess.fits_png else preview(pixels_BYXC))]


def picture_type(preview: Preview) -> Literal["pil", "pt"]:
    """The output type of which ``pictures_of`` makes pictures and files hold all channels and bits."""
    return "pil" if preview.preprocess.is_plain else "pt"


def pictures_of(images: Any, preview: Preview) -> list[Image.Image]:
    """What is shown of a call's images of ``picture_type``: Pillow images of 8 bits."""
    return images if isinstance(images, list) else [to_pil(each) for each in preview.of_images(images)]


def write_images(outputs: Outputs, stems: list[str], images: Any, preview: Preview) -> None:
    """Write a call's images of ``picture_type``, each in full; see ``Outputs.write_pixels``."""
    if isinstance(images, list):
        for stem, image in zip(stems, images, strict=True):
            outputs.write_image(f"{stem}.png", image)
        return
    for stem, pixels_YXC in zip(stems, to_pixels(images, preview.preprocess.bits), strict=True):
        outputs.write_pixels(stem, pixels_YXC, preview)


def code_maps(codes: torch.Tensor, spec: CodeSpec) -> list[Image.Image]:
    """A picture of each image's codes where they cannot be decoded: a colour for each code, a pixel for each position.

    Args:
        codes: as ``GeneratorOutput.codes``.
        spec: of the codes; of several levels the finest is shown, of several depths one beside the other.
    """
    level_BHWD = spec.split(codes.flatten(1).cpu().numpy())[-1]
    codes_BHW = np.concatenate(list(level_BHWD.transpose(3, 0, 1, 2)), 2) if level_BHWD.ndim == 4 else level_BHWD
    phases = np.array([0.0, 1 / 3, 2 / 3])
    hues_BHW1 = (codes_BHW[..., None] * _GOLDEN) % 1.0
    light_BHW1 = 0.55 + 0.45 * (codes_BHW[..., None] / max(1, spec.codebook_size - 1))
    pixels = 255 * light_BHW1 * (0.5 + 0.5 * np.cos(2 * np.pi * (hues_BHW1 + phases)))
    return [to_pil(each) for each in pixels.round().astype(np.uint8)]


def stacked(pictures: list[Image.Image], gap: int = 2 * GRID_GAP) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Pictures one below the other on white.

    Returns:
        The picture, and the first row of each part and the row after its last.
    """
    tops = [sum(each.height + gap for each in pictures[:i]) for i in range(len(pictures))]
    bounds = [(top, top + each.height) for top, each in zip(tops, pictures, strict=True)]
    size = max(each.width for each in pictures), bounds[-1][1]
    whole = Image.new(pictures[0].mode, size, "white")
    for top, each in zip(tops, pictures, strict=True):
        whole.paste(each, (0, top))
    return whole, bounds


def grid_image(images: list[Image.Image], n_columns: int) -> Image.Image:
    """Images side by side, small ones enlarged.

    Raises:
        DataError: no list of Pillow images of one size.
        ConfigError: no number of columns.
    """
    sizes = (
        [each.size if isinstance(each, Image.Image) else None for each in images] if isinstance(images, list) else []
    )
    sound, found = len(set(sizes)) == 1 and None not in sizes, shown(images)
    DataError.unless(sound, "cannot be a grid", field="images", found=found, expected="Pillow images of one size")
    first = images[0]
    pixels = np.stack([np.asarray(each).reshape(each.height, each.width, -1) for each in images])
    return image_grid(pixels, n_columns, scale=max(1, 64 // max(first.size)))
