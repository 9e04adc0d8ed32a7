"""Images of any number of channels and of 8 or 16 bits: axes and ranges of arrays, resizing of each channel.

RGB and grey of 8 bits stay Pillow images; everything else passes through here, each channel in floating point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from foundation.images.array_image import AnyImage, ArrayImage
from foundation.images.depth import WHITE, deep_values, is_deep, require_all_bits, require_white_applies
from foundation.images.failures import BadImage
from foundation.images.preprocess import to_mode

_ALPHA = 3
_COLOURS = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
_WITH_ALPHA = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}
_KEPT = ("L", "LA", "RGB", "RGBA", "RGBX")


class Asked(Protocol):
    """What a ``Preprocess`` says of channels and bits."""

    @property
    def mode(self) -> str: ...  # noqa: D102
    @property
    def background(self) -> tuple[int, int, int]: ...  # noqa: D102
    @property
    def n_channels(self) -> int: ...  # noqa: D102
    @property
    def bits(self) -> int: ...  # noqa: D102
    @property
    def top_level(self) -> int: ...  # noqa: D102
    @property
    def white_level(self) -> int | None: ...  # noqa: D102
    @property
    def value_range(self) -> tuple[float, float] | None: ...  # noqa: D102
    @property
    def channel_axis(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Levels:
    """An image before it is resized.

    Attributes:
        values_YXC: of any type of numbers.
        black, white: the values that become 0 and the largest level.
        top: the largest level, 255 or 65535.
        has_alpha: whether the last channel is opacity.
    """

    values_YXC: np.ndarray
    black: float
    white: float
    top: int
    has_alpha: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.values_YXC.shape[1], self.values_YXC.shape[0]

    def crop(self, left: int, upper: int, right: int, lower: int) -> Levels:
        """A rectangle of pixels."""
        part = self.values_YXC[upper:lower, left:right]
        return Levels(part, self.black, self.white, self.top, self.has_alpha)

    def cover(self, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
        """Resize to cover (width, height) and crop at the centre, as ``ImageOps.fit`` does. Returns (Y, X, C) levels.

        Each channel is resized in float32 and rounded once. Colours with opacity are resized multiplied by it, so that
        hidden colours do not bleed into visible ones; the colour of a pixel that is transparent becomes 0.
        """
        if size == self.size:
            return self._resized(None)
        return self._resized(lambda image: ImageOps.fit(image, size, method=method, centering=(0.5, 0.5)))

    def region(
        self, box: tuple[float, float, float, float], size: tuple[int, int], method: Image.Resampling
    ) -> np.ndarray:
        """Resize a part, (left, top, right, bottom) in pixels, to (width, height). Returns (Y, X, C) levels."""
        return self._resized(lambda image: image.resize(size, method, box=box))

    def _resized(self, resize: Callable[[Image.Image], Image.Image] | None) -> np.ndarray:
        """Each channel resized; None keeps the size."""

        def made(channel_YX: np.ndarray) -> np.ndarray:
            return channel_YX if resize is None else np.asarray(resize(Image.fromarray(channel_YX)))

        if not self.has_alpha:
            return np.stack([self._rounded(made(self._channel(i))) for i in range(self.values_YXC.shape[2])], -1)
        opacity, colours = self._channel(_ALPHA), [self._channel(i) for i in range(_ALPHA)]
        covered = made(opacity)
        alpha = self._rounded(covered)
        if resize is not None:
            share = np.maximum(covered, 0.5) / self.top
            colours = [made(each * opacity / self.top) / share for each in colours]
        visible = [np.where(alpha > 0, self._rounded(each), 0) for each in colours]
        return np.stack([*visible, alpha], -1).astype(alpha.dtype)

    def _channel(self, index: int) -> np.ndarray:
        """One channel with black at 0 and white at ``top``, (Y, X) float32."""
        values = self.values_YXC[..., index]
        if self.black == 0 and self.white == self.top:
            return values.astype(np.float32)
        scaled = (values.astype(np.float64) - self.black) * (self.top / (self.white - self.black))
        return scaled.astype(np.float32)

    def _rounded(self, levels: np.ndarray) -> np.ndarray:
        return np.rint(levels.clip(0, self.top)).astype(np.uint8 if self.top == 255 else np.uint16)


def to_levels(image: AnyImage | np.ndarray, asked: Asked) -> Levels:
    """An upright Pillow image or an array as the channels that are asked for, not resized.

    Raises:
        BadImage: another number of channels, axes that can be read in two ways, values without a declared range or
            outside it, or more bits than could be read.
    """
    if isinstance(image, np.ndarray):
        image = ArrayImage(image)
    if isinstance(image, Image.Image):
        image = _of_pillow(image, asked)
    values_YXC = _channels_last(image, _accepted(asked), asked.channel_axis)
    black, white = _range_of(values_YXC, image.white, asked)
    values_YXC = _completed(values_YXC, asked, white)
    return Levels(values_YXC, black, white, asked.top_level, asked.mode == "RGBA")


def _accepted(asked: Asked) -> tuple[int, ...]:
    """Numbers of channels that an array may have; grey becomes colour, and images without opacity are opaque."""
    return {"L": (1,), "RGB": (3, 1), "RGBA": (4, 3, 1)}.get(asked.mode, (asked.n_channels,))


def _of_pillow(image: Image.Image, asked: Asked) -> ArrayImage:
    if asked.bits > 8:
        require_all_bits(image)
    require_white_applies(image, asked.white_level)
    if is_deep(image):
        values, white = deep_values(image, asked.white_level)
        return ArrayImage(values, white=white)
    if image.mode in ("F", "I"):
        return ArrayImage(np.asarray(image))
    if asked.mode in ("RGB", "L"):
        image = to_mode(image, asked.mode, asked.background, asked.white_level)
        return ArrayImage(np.asarray(image).reshape(image.height, image.width, -1), channel_axis=2)
    mode = _WITH_ALPHA.get(image.mode) or _COLOURS.get(image.mode, image.mode)
    if mode not in _KEPT:
        fix = "save it as an 8-bit or 16-bit image"
        raise BadImage("pixel_format", f"pixel format {image.mode} has no defined range", fix=fix)
    if "transparency" in image.info:
        mode = {"L": "LA", "RGB": "RGBA"}.get(mode, mode)
    mode = "RGBA" if asked.mode == "RGBA" else mode
    converted = (
        image if image.mode == mode else image.convert("RGBA").convert(mode) if "A" in mode else image.convert(mode)
    )
    return ArrayImage(np.asarray(converted).reshape(image.height, image.width, -1), channel_axis=2)


def _channels_last(image: ArrayImage, accepted: tuple[int, ...], setting: str) -> np.ndarray:
    """(Y, X, C) of an array."""
    values = image.values
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    shape, wanted = " x ".join(map(str, values.shape)), " or ".join(map(str, accepted))
    if not values.size or values.ndim not in (2, 3):
        what = "the array is not height x width, with or without channels"
        raise BadImage("pixel_format", what, found=shape or "one number", fix="write one image, (Y, X, C)")
    if values.ndim == 2:
        values = values[..., None]
        axis: int | None = 2
    else:
        axis = image.channel_axis if setting == "auto" else {"first": 0, "last": 2}[setting]
    if axis is None:
        axes = [each for each in (0, 2) if values.shape[each] in accepted]
        if len(axes) > 1:
            what, fix = "channels may be first or last", "--data.preprocess.channel_axis first, or last"
            raise BadImage("pixel_format", what, found=shape, fix=fix)
        axis = axes[0] if axes else 2
    if values.shape[axis] not in accepted:
        what, expected = "another number of channels", f"{wanted} (data.preprocess.mode and channels), first or last"
        raise BadImage("pixel_format", what, found=shape, expected=expected)
    return values if axis == 2 else values.transpose(1, 2, 0)


def _range_of(values: np.ndarray, declared: int | None, asked: Asked) -> tuple[float, float]:
    """The values of black and white of an array, which all values lie between."""
    kind = values.dtype.kind
    if kind not in "buif":
        raise BadImage("pixel_format", f"holds no numbers, but {values.dtype}")
    if kind == "f" and not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        what, fix = "holds values that are not finite (NaN or infinity)", "replace them, or leave the image out"
        raise BadImage("pixel_format", what, found=f"{n_bad:,} of {values.size:,}", fix=fix)
    field = "data.preprocess.value_range"
    if kind == "b":
        black, white = 0.0, 1.0
    elif values.dtype == np.uint8:
        black, white = 0.0, 255.0
    elif kind == "u" and values.dtype.itemsize == 2:
        black, white, field = 0.0, float(declared or asked.white_level or WHITE), "data.preprocess.white_level"
    elif asked.value_range is not None:
        black, white = map(float, asked.value_range)
    else:
        what = f"holds {values.dtype}, of which it is not known which values are black and white"
        found, fix = f"values from {values.min():g} to {values.max():g}", f"--{field} '[BLACK, WHITE]'"
        raise BadImage("pixel_format", what, found=found, fix=fix)
    low, high = float(values.min()), float(values.max())
    if low < black or high > white:
        found, expected = f"{low:g} to {high:g}", f"{black:g} to {white:g} ({field})"
        raise BadImage("pixel_format", "has values outside black and white", found=found, expected=expected)
    return black, white


def _completed(values_YXC: np.ndarray, asked: Asked, white: float) -> np.ndarray:
    """Grey repeated for colour, and full opacity added where there is none."""
    n = values_YXC.shape[2]
    if n == asked.n_channels:
        return values_YXC
    colours = np.repeat(values_YXC, 3, 2) if n == 1 else values_YXC
    if asked.mode == "RGB":
        return colours
    opaque: Any = np.full_like(colours[..., :1], white)
    return np.concatenate([colours, opaque], 2)
