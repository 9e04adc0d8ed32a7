"""Reconstructions of image files, beside the originals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from foundation.arguments import as_paths, require_type
from foundation.images.preprocess import image_grid, to_pixels, to_unit_range
from pipeline.image_files import read_pixels, readable
from stage1_tokenizer.evaluate import scores_of
from stage1_tokenizer.tokenizer import TokenizerModel


@dataclass(frozen=True)
class Reconstructed:
    """One image and its reconstruction.

    Attributes:
        image_id: path of the image.
        psnr: dB, over all channels; see ``TokenizerScores``.
        pair: image and reconstruction side by side, as they are shown.
        pixels_YXC: the reconstruction in full, uint8 or uint16.
    """

    image_id: str
    psnr: float
    pair: Image.Image
    pixels_YXC: np.ndarray


def reconstruct_files(
    tokenizer: TokenizerModel, paths: list[Path], *, keep_size: bool = False
) -> tuple[list[Reconstructed], list[str]]:
    """Reconstruct image files.

    Args:
        tokenizer: in evaluation mode.
        paths: image files.
        keep_size: crop images to multiples of the stride instead of resizing them.

    Returns:
        Reconstructions, and a line for each unusable file.
    """
    require_type("tokenizer", tokenizer, TokenizerModel)
    require_type("keep_size", keep_size, bool)
    device, paths = next(tokenizer.parameters()).device, as_paths(paths, "paths")
    done: list[Reconstructed] = []
    failed: list[str] = []
    read = partial(read_pixels, tokenizer, keep_size=keep_size)
    for path, pixels in readable(paths, read, failed, desc="reconstructing"):
        image = to_unit_range(pixels).to(device)
        decoded = tokenizer.decode(tokenizer.encode(image), (image.shape[-2], image.shape[-1]))
        result = to_pixels(decoded, tokenizer.preprocess.bits)
        pair = side_by_side(tokenizer.preview(np.concatenate([pixels, result])))
        psnr = float(scores_of(image, decoded.clamp(-1, 1), tokenizer.preprocess)["psnr"])
        done.append(Reconstructed(str(path), psnr, pair, result[0]))
    return done, failed


def side_by_side(pixels_BYXC: np.ndarray) -> Image.Image:
    """Arrange images in one row; enlarge small ones."""
    return image_grid(pixels_BYXC, len(pixels_BYXC), scale=max(1, 128 // max(pixels_BYXC.shape[1:3])))
