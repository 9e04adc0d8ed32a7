"""An image that is an array: what a file of numbers holds, before its channels and its range are checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class ArrayImage:
    """An image that a file or a cell holds as an array, as it is there.

    Attributes:
        values: numbers with two or three axes.
        channel_axis: 0 or 2 where the file says which axis holds the channels; None where it does not.
        white: the value of white where the file says it; only of whole numbers from 0.
    """

    values: np.ndarray
    channel_axis: int | None = None
    white: int | None = None

    @property
    def mode(self) -> str:
        """The type of the numbers, where a Pillow image has its mode."""
        return f"array of {self.values.dtype}"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height); without a known axis of channels, the smaller one of the first and the last is taken."""
        shape = self.values.shape
        if len(shape) == 3:
            axis = self.channel_axis
            axis = (0 if shape[0] < shape[2] else 2) if axis is None else axis
            shape = shape[:axis] + shape[axis + 1 :]
        return shape[1], shape[0]

    def tobytes(self) -> bytes:
        """The numbers as bytes, in the order of the array."""
        return self.values.tobytes()

    @property
    def width(self) -> int:
        """Columns."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Rows."""
        return self.size[1]


AnyImage = Image.Image | ArrayImage
"""what a source reads"""
