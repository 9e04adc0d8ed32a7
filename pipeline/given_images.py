"""The images, or their codes, that a caller wants changed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from foundation.codes.spec import CodeSpec
from foundation.errors import DataError
from foundation.images.preprocess import to_unit_range
from pipeline.generator_output import decode_batch
from pipeline.given_codes import is_codes, read_codes
from pipeline.score import pixels_of
from stage1_tokenizer.tokenizer import TokenizerModel


class Given(NamedTuple):
    """What there is of B images.

    Attributes:
        codes_BP: the first P of T codes of each, int64.
        images_BCYX: the pixels in [-1, 1]; None where codes were given.
    """

    codes_BP: torch.Tensor
    images_BCYX: torch.Tensor | None


def read_images(images: Any, spec: CodeSpec, device: torch.device) -> torch.Tensor:
    """Images as a caller gives them => (B, C, Y, X) float32 in [-1, 1] on a device.

    Raises:
        DataError: another type, shape or range.
    """
    pixels = pixels_of(images, spec.preprocess)
    batch = pixels if isinstance(pixels, torch.Tensor) else to_unit_range(np.stack(pixels))
    return batch.float().to(device)


def read_given(
    images: Any, tokenizer: TokenizerModel, spec: CodeSpec, device: torch.device, hidden_BYX: torch.Tensor | None
) -> Given:
    """Images or codes as a caller gives them, the images encoded.

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
    if hidden_BYX is not None and len(hidden_BYX) not in (1, len(images_BCYX)):
        raise masks_for(len(hidden_BYX), len(images_BCYX))
    seen_BCYX = images_BCYX if hidden_BYX is None else hide(images_BCYX, hidden_BYX.to(device))
    batch = decode_batch(images_BCYX.shape[2] * images_BCYX.shape[3])
    codes_BT = torch.cat([tokenizer.encode(part).flatten(1) for part in seen_BCYX.split(batch)])
    return Given(codes_BT, images_BCYX)


def masks_for(n_masks: int, n_images: int) -> DataError:
    """What to raise for masks that are neither one nor as many as the images."""
    return DataError("are neither one nor as many as the images", field="mask", found=n_masks,
                     expected=f"1 or {n_images}")  # fmt: skip


def hide(images_BCYX: torch.Tensor, hidden_BYX: torch.Tensor) -> torch.Tensor:
    """Images in which each hidden pixel is that of the nearest shown one, by rows plus columns; all hidden, 0.

    Of pixels that are equally near, the one above is taken first, then the one below, left, right.
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
    """Rows or columns moved by one; what comes in from outside is 0 or False."""
    moved = maps.roll(shift, axis)
    moved.select(axis, 0 if shift > 0 else -1).zero_()
    return moved
