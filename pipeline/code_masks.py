"""Which codes of a grid a region of an image touches, and masks as callers give them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from foundation.codes.spec import CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.images.preprocess import Preprocess
from pipeline.requests import whole


def codes_of_pixels(mask_BYX: torch.Tensor, spec: CodeSpec) -> torch.Tensor:
    """The codes whose block of pixels is touched by a mask, on every level and depth.

    Args:
        mask_BYX: bool, of the size of the preprocess.
        spec: what the codes are.

    Returns:
        (B, T) bool.
    """
    parts = []
    for level in spec.levels:
        block = mask_BYX.shape[1] // level.height, mask_BYX.shape[2] // level.width
        touched_BHW = F.max_pool2d(mask_BYX.unsqueeze(1).float(), block).squeeze(1) > 0
        parts.append(touched_BHW.flatten(1).repeat_interleave(level.depth, 1))
    return torch.cat(parts, 1)


def pixels_of_codes(codes_BHW: torch.Tensor, spec: CodeSpec) -> torch.Tensor:
    """A mask of the finest grid, (B, H, W) bool => of the pixels, (B, Y, X) bool."""
    return codes_BHW.repeat_interleave(spec.stride, 1).repeat_interleave(spec.stride, 2)


def below_rows(rows: object, spec: CodeSpec) -> torch.Tensor:
    """The pixels below the first rows of the finest grid, (1, Y, X) bool.

    Args:
        rows: a whole number of rows, 1 to H - 1, or a share of them between 0 and 1.
        spec: what the codes are.

    Raises:
        ConfigError: neither, or nothing would be given or left to draw.
    """
    height = spec.levels[-1].height
    share = float(rows) if isinstance(rows, float) and math.isfinite(rows) else 0.0
    n = round(share * height) if 0 < share < 1 else whole(rows)
    if height == 1:
        raise ConfigError("cannot be used: the grid has one row", field="rows", found=repr(rows)[:200],
                          fix="leave rows out and give the first codes, or use inpaint")  # fmt: skip
    if not 0 < n < height:
        raise ConfigError("cannot be the rows to keep", field="rows", found=repr(rows)[:200],
                          expected=f"a whole number from 1 to {height - 1}, or a share such as 0.5")  # fmt: skip
    mask_YX = torch.zeros(spec.preprocess.height, spec.preprocess.width, dtype=torch.bool)
    mask_YX[n * spec.stride :] = True
    return mask_YX.unsqueeze(0)


def pixel_mask(mask: Any, spec: CodeSpec) -> torch.Tensor:
    """A mask as a caller gives it => pixels to draw anew, (1 or B, Y, X) bool.

    Args:
        mask: a Pillow image (white is drawn anew; it is resized and cropped as the image is), or an array or tensor of
            the pixels' or the finest grid's size, (Y, X), (H, W), or one for each image with a leading B: bool, whole
            numbers to 255 (128 and more is drawn anew) or floating point from 0 to 1 (0.5 and more).
        spec: what the codes are.

    Raises:
        DataError: another type, shape or range, or nothing to draw.
    """
    if isinstance(mask, Image.Image):
        white = _mask_preprocess(spec.preprocess)(mask.convert("L"))[..., 0] >= 128
        return _some(torch.from_numpy(white).unsqueeze(0))
    try:
        given = torch.as_tensor(np.asarray(mask) if not isinstance(mask, torch.Tensor) else mask).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError("is not a mask", field="mask", found=type(mask).__name__,
                        expected="a Pillow image, an array or a tensor") from error  # fmt: skip
    pixels, finest = (spec.preprocess.height, spec.preprocess.width), spec.levels[-1]
    grid = (finest.height, finest.width)
    if given.ndim not in (2, 3) or tuple(given.shape[-2:]) not in (pixels, grid) or given.is_complex():
        raise DataError("has the wrong shape", field="mask", found=(tuple(given.shape), given.dtype),
                        expected=f"{pixels} pixels or {grid} codes, with or without a leading B")  # fmt: skip
    high = 1.0 if given.is_floating_point() or given.dtype == torch.bool else 255.0
    values = given.double()
    if not bool(((values >= 0) & (values <= high)).all()):
        raise DataError("is outside its range", field="mask", found=given.dtype, expected=f"values from 0 to {high:g}")
    marked = values > 0 if given.dtype == torch.bool else values >= (0.5 if high == 1.0 else 128)
    marked = marked.unsqueeze(0) if marked.ndim == 2 else marked
    return _some(marked if tuple(given.shape[-2:]) == pixels else pixels_of_codes(marked, spec))


def grown(mask_BYX: torch.Tensor, n_pixels: int) -> torch.Tensor:
    """A mask and what lies within n pixels of it, (B, Y, X) bool."""
    if n_pixels == 0:
        return mask_BYX
    return F.max_pool2d(mask_BYX.unsqueeze(1).float(), 2 * n_pixels + 1, 1, n_pixels).squeeze(1) > 0


def _mask_preprocess(preprocess: Preprocess) -> Preprocess:
    return dataclasses.replace(preprocess, mode="L", resize="nearest")


def _some(mask_BYX: torch.Tensor) -> torch.Tensor:
    if not len(mask_BYX) or not bool(mask_BYX.flatten(1).any(1).all()):
        raise DataError("marks nothing to draw anew", field="mask", found="an empty mask",
                        expected="white pixels, True or 1 where something new is wanted")  # fmt: skip
    return mask_BYX
