"""Inputs of editing: images or codes that are given, masks of pixels, and the codes that a mask touches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from foundation.arguments import as_codes, as_images, shown
from foundation.codes.spec import CodeSpec, require_codes
from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess
from foundation.images.headers import size_of
from foundation.images.preprocess import to_unit_range
from foundation.images.shapes import shapes_text
from pipeline.generation.outputs import decode_batch
from pipeline.generation.requests import require_one_or_all, whole
from stage1_tokenizer.tokenizer import TokenizerModel

Images = Image.Image | Sequence[Image.Image] | torch.Tensor


class Given(NamedTuple):
    """The codes and pixels of B given images.

    Attributes:
        codes_BP: the first P of T codes of each, int64.
        images_BCYX: the pixels in [-1, 1]; None where codes were given.
    """

    codes_BP: torch.Tensor
    images_BCYX: torch.Tensor | None


def grid_of(images: Any, spec: CodeSpec) -> int:
    """The grid of given images or codes, an index into ``CodeSpec.grids``: their shape, or that of pictures' aspect.

    Codes whose shape says nothing, and what is no image at all, are taken for the first: reading them says what is
    wrong.

    Raises:
        DataError: pictures that take several shapes, which are no one batch.
    """
    if spec.n_grids == 1:
        return 0
    if is_codes(images):
        return _grid_of_codes(tuple(images.shape), spec)
    if isinstance(images, torch.Tensor):
        sides = tuple(images.shape[-2:])
        return spec.preprocess.all_shapes.index(sides) if sides in spec.preprocess.all_shapes else 0
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    sizes = [size_of(each) for each in several if isinstance(each, Image.Image)]
    if not spec.preprocess.is_plain:
        sizes += [spec.preprocess.prepare(each).size for each in several if isinstance(each, np.ndarray)]
    grids = sorted({spec.preprocess.shape_of(size) for size in sizes if min(size)})
    found, fix = shapes_text([spec.preprocess.all_shapes[grid] for grid in grids]), "call once for each shape"
    problem, expected = "take several shapes, which are no one batch", "pictures of one aspect ratio"
    DataError.unless(len(grids) < 2, problem, field="images", found=found, expected=expected, fix=fix)
    return grids[0] if grids else 0


def _grid_of_codes(shape: tuple[int, ...], spec: CodeSpec) -> int:
    """By rows and columns; of the first rows alone, by the columns."""
    whole = spec.find_grid(shape[1:])
    columns = [grid for grid, (_, width) in enumerate(spec.grids) if len(shape) > 2 and width == shape[2]]
    return whole if whole is not None else columns[0] if columns else 0


def is_codes(images: Any) -> bool:
    """Whether these are codes: a tensor or array of whole numbers."""
    if isinstance(images, torch.Tensor):
        return not images.is_floating_point() and not images.is_complex()
    return isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.integer)


def read_codes(codes: Any, spec: CodeSpec) -> torch.Tensor:
    """Given codes => (B, P) int64, the first P of T codes.

    Args:
        codes: ``GeneratorOutput.codes``, or the first rows or the first codes of them: the dimensions after the first
            are one sequence.
        spec: what the codes are.

    Raises:
        DataError: more codes than an image has, none, or one outside its codebook.
    """
    expected = f"{('B', *spec.shape)}, or the first of these {spec.n_codes} codes"
    given = as_codes(codes, "images", expected=expected)
    if given.ndim < 2 or not given.numel() or given[0].numel() > spec.n_codes:
        found, fix = shown(codes), "a tensor of images has floats from -1 to 1"
        raise DataError("are not codes of images", field="images", found=found, expected=expected, fix=fix)
    codes_BP = given.reshape(len(given), -1)
    whole_BT = np.zeros((len(codes_BP), spec.n_codes), np.int64)
    whole_BT[:, : codes_BP.shape[1]] = codes_BP.cpu().numpy()
    require_codes(whole_BT, spec, "images")
    return codes_BP


def pixels_of(images: Images, preprocess: Preprocess) -> torch.Tensor | list[np.ndarray]:
    """Given images: a (B, C, Y, X) tensor in [-1, 1] as it is, or each Pillow image as (Y, X, C) pixels.

    Of other channels and bits than RGB and grey of 8 bits, a list may hold arrays too, (Y, X, C).

    Raises:
        DataError: another type, shape or range.
    """
    expected = (preprocess.n_channels, preprocess.height, preprocess.width)
    if isinstance(images, torch.Tensor):
        shape = tuple(images.shape)
        if is_codes(images):
            problem, fix = "are whole numbers", "codes become images by generator.tokenizer.decode(codes)"
            floats = f"{('B', *expected)}, floating point from -1 to 1"
            raise DataError(problem, field="images", found=(shape, images.dtype), expected=floats, fix=fix)
        images = as_images(images, preprocess.n_channels)
        right, problem = shape[1:] == expected and len(images) > 0, "have another shape than the prior's"
        DataError.unless(right, problem, field="images", found=shape, expected=("B", *expected))
        largest, expected_range = images.abs().amax(), "floating point from -1 to 1"
        found = f"{images.dtype}, up to {largest}"
        DataError.unless(bool(largest <= 1), "are not in [-1, 1]", field="images", found=found, expected=expected_range)
        return images
    several: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
    kinds = (Image.Image,) if preprocess.is_plain else (Image.Image, np.ndarray)
    right = bool(several) and all(isinstance(each, kinds) for each in several)
    types, known = [type(each).__name__ for each in several[:3]], "a Pillow image, a list, or a (B, C, Y, X) tensor"
    arrays = any(isinstance(each, np.ndarray) for each in several)
    way = (
        "pixels: PIL.Image.fromarray of (Y, X, 3) uint8; (B, C, Y, X) in [-1, 1]: torch.from_numpy" if arrays else None
    )
    DataError.unless(right, "are not images", field="images", found=types, expected=known, fix=way)
    return [preprocess(each) for each in several]


def read_images(images: Any, spec: CodeSpec, device: torch.device) -> torch.Tensor:
    """Given images => (B, C, Y, X) float32 in [-1, 1] on a device.

    Raises:
        DataError: another type, shape or range.
    """
    pixels = pixels_of(images, spec.preprocess)
    batch = pixels if isinstance(pixels, torch.Tensor) else to_unit_range(np.stack(pixels))
    return batch.float().to(device)


def read_given(
    images: Any, tokenizer: TokenizerModel, spec: CodeSpec, device: torch.device, hidden_BYX: torch.Tensor | None
) -> Given:
    """Given images, encoded, or given codes.

    Args:
        images: Pillow images, a (B, C, Y, X) tensor in [-1, 1], or codes.
        tokenizer: encodes.
        spec: what the codes are.
        device: of the tokenizer.
        hidden_BYX: pixels that the encoder must not see, (1 or B, Y, X) bool; None shows all.

    Raises:
        DataError: another type, shape or range.
    """
    if is_codes(images):
        return Given(read_codes(images, spec).to(device), None)
    images_BCYX = read_images(images, spec, device)
    if hidden_BYX is not None:
        require_one_or_all("mask", len(hidden_BYX), len(images_BCYX))
    seen_BCYX = images_BCYX if hidden_BYX is None else hide(images_BCYX, hidden_BYX.to(device))
    batch = decode_batch(images_BCYX.shape[2] * images_BCYX.shape[3])
    codes_BT = torch.cat([tokenizer.tokens(part) for part in seen_BCYX.split(batch)])
    return Given(codes_BT, images_BCYX)


def hide(images_BCYX: torch.Tensor, hidden_BYX: torch.Tensor) -> torch.Tensor:
    """Replace each hidden pixel by the nearest shown one, by rows plus columns; by 0 if all are hidden.

    Of equally near pixels the one above comes first, then below, left, right.
    """
    hidden_B1YX = hidden_BYX.unsqueeze(1).expand(len(images_BCYX), 1, *hidden_BYX.shape[1:]).clone()
    filled = images_BCYX.masked_fill(hidden_B1YX, 0.0)
    shown_before = -1
    while shown_before < (shown := int((~hidden_B1YX).sum())) < hidden_B1YX.numel():
        reached_B1YX, found = hidden_B1YX, filled
        for shift, axis in ((1, 2), (-1, 2), (1, 3), (-1, 3)):
            from_B1YX = _shifted(~hidden_B1YX, shift, axis) & reached_B1YX
            found = torch.where(from_B1YX, _shifted(filled, shift, axis), found)
            reached_B1YX = reached_B1YX & ~from_B1YX
        filled, hidden_B1YX, shown_before = found, reached_B1YX, shown
    return filled


def _shifted(maps: torch.Tensor, shift: int, axis: int) -> torch.Tensor:
    """Shift rows or columns by one, filling with 0 or False."""
    moved = maps.roll(shift, axis)
    moved.select(axis, 0 if shift > 0 else -1).zero_()
    return moved


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


def below_rows(rows: object, spec: CodeSpec) -> torch.Tensor:
    """The pixels below the first rows of the finest grid, (1, Y, X) bool.

    Args:
        rows: a whole number of rows, 1 to H - 1, or a share of them between 0 and 1.
        spec: what the codes are.

    Raises:
        ConfigError: neither, or nothing would be given or left to sample.
    """
    height = spec.levels[-1].height
    share = float(rows) if isinstance(rows, float) and math.isfinite(rows) else 0.0
    n = round(share * height) if 0 < share < 1 else whole(rows)
    problem, fix = "cannot be used: the grid has one row", "leave rows out and give the first codes, or use inpaint"
    ConfigError.unless(height > 1, problem, field="rows", found=shown(rows), fix=fix)
    problem, expected = "cannot be the rows to keep", f"a whole number from 1 to {height - 1}, or a share such as 0.5"
    ConfigError.unless(0 < n < height, problem, field="rows", found=shown(rows), expected=expected)
    mask_YX = torch.zeros(spec.preprocess.height, spec.preprocess.width, dtype=torch.bool)
    mask_YX[n * spec.stride :] = True
    return mask_YX.unsqueeze(0)


def pixel_mask(mask: Any, spec: CodeSpec) -> torch.Tensor:
    """A given mask => pixels to sample, (1 or B, Y, X) bool.

    Args:
        mask: a Pillow image (white is sampled; it is resized and cropped as the image is), or an array or tensor of the
            pixels' or the finest grid's size, (Y, X), (H, W), or one for each image with a leading B: bool, whole
            numbers to 255 (128 and more is sampled) or floating point from 0 to 1 (0.5 and more).
        spec: what the codes are.

    Raises:
        DataError: another type, shape or range, or nothing to sample.
    """
    if isinstance(mask, Image.Image):
        asked = spec.preprocess
        preprocess = Preprocess(height=asked.height, width=asked.width, crop=asked.crop, mode="L", resize="nearest")
        white = preprocess(mask.convert("L"))[..., 0] >= 128
        return _some(torch.from_numpy(white).unsqueeze(0))
    try:
        given = torch.as_tensor(np.asarray(mask) if not isinstance(mask, torch.Tensor) else mask).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        expected = "a Pillow image, an array or a tensor"
        raise DataError("is not a mask", field="mask", found=type(mask).__name__, expected=expected) from error
    pixels, finest = (spec.preprocess.height, spec.preprocess.width), spec.levels[-1]
    grid = (finest.height, finest.width)
    if given.ndim not in (2, 3) or tuple(given.shape[-2:]) not in (pixels, grid) or given.is_complex():
        expected = f"{pixels} pixels or {grid} codes, with or without a leading B"
        found = (tuple(given.shape), given.dtype)
        raise DataError("has the wrong shape", field="mask", found=found, expected=expected)
    high = 1.0 if given.is_floating_point() or given.dtype == torch.bool else 255.0
    values = given.double()
    right, expected = bool(((values >= 0) & (values <= high)).all()), f"values from 0 to {high:g}"
    DataError.unless(right, "is outside its range", field="mask", found=given.dtype, expected=expected)
    marked = values > 0 if given.dtype == torch.bool else values >= (0.5 if high == 1.0 else 128)
    marked = marked.unsqueeze(0) if marked.ndim == 2 else marked
    if tuple(given.shape[-2:]) != pixels:
        marked = marked.repeat_interleave(spec.stride, 1).repeat_interleave(spec.stride, 2)
    return _some(marked)


def grown(mask_BYX: torch.Tensor, n_pixels: int) -> torch.Tensor:
    """A mask dilated by n pixels, (B, Y, X) bool."""
    if n_pixels == 0:
        return mask_BYX
    return F.max_pool2d(mask_BYX.unsqueeze(1).float(), 2 * n_pixels + 1, 1, n_pixels).squeeze(1) > 0


def kept_pixels(pixels_BYXC: np.ndarray, mask_BYX: np.ndarray) -> np.ndarray:
    """Images with what a mask covers in middle grey, (B, Y, X, C) pixels."""
    middle = np.array((np.iinfo(pixels_BYXC.dtype).max + 1) // 2, pixels_BYXC.dtype)
    return np.where(mask_BYX[..., None], middle, pixels_BYXC)


def _some(mask_BYX: torch.Tensor) -> torch.Tensor:
    right = len(mask_BYX) > 0 and bool(mask_BYX.flatten(1).any(1).all())
    expected = "white pixels, True or 1 where new codes are wanted"
    DataError.unless(right, "marks nothing to sample", field="mask", found="an empty mask", expected=expected)
    return mask_BYX
