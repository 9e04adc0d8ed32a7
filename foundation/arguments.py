"""Arguments of the Python API as the tensors and paths that the code works with: codes, images, labels, folders.

Each kind has one entry here. What a caller may hold (NumPy arrays and tensors of any fitting type, lists of numbers)
becomes one type; anything else is a ``TesseraError`` that names the argument, what was found and how to convert it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from foundation.errors import ConfigError, DataError
from foundation.paths import expand

T = TypeVar("T")
_LONGEST = 200
"""characters of a value in a message"""


def shown(value: object) -> str:
    """A value for a message: the shape and type of an array, else its ``repr``, at most 200 characters."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{tuple(value.shape)} {value.dtype}"
    try:
        return repr(value)[:_LONGEST]
    except Exception:  # an object of another library may not even be shown
        return type(value).__name__


def require_type(field: str, value: object, kind: type[T] | tuple[type, ...], fix: str | None = None) -> T:
    """The value itself, if it is of a class.

    Raises:
        ConfigError: it is of another one.
    """
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(each.__name__ for each in kinds)
        found = f"{type(value).__name__}: {shown(value)}"
        raise ConfigError("has the wrong type", field=field, found=found, expected=expected, fix=fix)
    return value  # type: ignore[return-value]


def as_path(path: Any, field: str) -> Path:
    """A path of a file or folder, as text or ``Path``; ``~`` is the home folder.

    Raises:
        ConfigError: something else, an empty text, or a text that no file system can hold.
    """
    given = path if isinstance(path, (str, os.PathLike)) else None
    text = None if given is None else os.fspath(given)
    if not isinstance(text, str) or not text or "\0" in text:
        expected = "a path, as text or pathlib.Path"
        raise ConfigError("is not a path", field=field, found=shown(path), expected=expected)
    return Path(expand(text, field))


def as_paths(paths: Any, field: str) -> list[Path]:
    """Several paths, as a list.

    Raises:
        ConfigError: something else than a list or tuple of paths; a single path is not a list.
    """
    if not isinstance(paths, (list, tuple)):
        raise ConfigError("is not a list of paths", field=field, found=shown(paths), expected="a list")
    return [as_path(each, f"{field}[{i}]") for i, each in enumerate(paths)]


def as_codes(
    codes: Any, field: str = "codes", device: torch.device | None = None, *, expected: str = ""
) -> torch.Tensor:
    """Whole numbers of any kind => an int64 tensor of the same shape.

    Args:
        codes: a tensor or NumPy array of an integer type, uint16 among them, or (nested) lists of whole numbers.
        field: the argument's name.
        device: where arrays and lists are put, and where tensors must be; None takes any.
        expected: their shape, for the message.

    Raises:
        DataError: another type, numbers that are not whole, or a tensor on another device.
    """
    given = _tensor_of(codes, device)
    fits = given is not None and not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
    if given is None or not fits:
        expected = f"{expected} whole numbers: an integer tensor or NumPy array".strip()
        fix = _FLOATS if given is not None and given.is_floating_point() else None
        raise DataError("are not codes", field=field, found=shown(codes), expected=expected, fix=fix)
    return _placed(given.detach().to(torch.int64), codes, field, device)


_FLOATS = "codes are indices; floating point numbers are images or latents"


def as_images(
    images: Any,
    n_channels: int,
    field: str = "images",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    values: str = "from -1 to 1",
) -> torch.Tensor:
    """Images in [-1, 1] => a (B, C, Y, X) tensor of one floating point type. The range is not checked here.

    Args:
        images: a tensor or NumPy array of any floating point type, (B, C, Y, X).
        n_channels: C.
        field: the argument's name.
        dtype: of the result.
        device: where arrays are put, and where tensors must be; None takes any.
        values: their range, for the message.

    Raises:
        DataError: another type, shape or number of channels, no image, or a tensor on another device.
    """
    given = _tensor_of(images, device)
    expected = f"(B, {n_channels}, Y, X), floating point {values}".strip()
    found = shown(images)
    if given is None or not given.is_floating_point():
        fix = "Pillow images: foundation.images.preprocess.to_unit_range(tokenizer.preprocess(image)[None])"
        if given is not None and given.dtype == torch.uint8:
            fix = "to_unit_range of foundation.images.preprocess makes them of (B, Y, X, C) uint8"
        raise DataError("are not a batch of images", field=field, found=found, expected=expected, fix=fix)
    shape, problem, fix = tuple(given.shape), None, "use tokenizer.preprocess and to_unit_range"
    if len(shape) == 3:
        problem, fix = "are not a batch of images, but a single one", "give images[None] for a single image"
    elif len(shape) != 4 or not given.numel():
        problem = "are not a batch of images"
    elif shape[1] != n_channels:
        problem = "have another number of channels"
        fix = "channels come second: images.permute(0, 3, 1, 2)" if shape[3] == n_channels else fix
    if problem is not None:
        raise DataError(problem, field=field, found=found, expected=expected, fix=fix)
    return _placed(given if given.dtype == dtype else given.to(dtype), images, field, device)


def _tensor_of(values: Any, device: torch.device | None) -> torch.Tensor | None:
    """A dense tensor with the values of an array, tensor or list; None for what holds no numbers.

    A model on the meta device takes tensors without values: so its memory is counted.
    """
    if isinstance(values, torch.Tensor):
        empty = values.is_meta and (device is None or device.type != "meta")
        plain = values.layout == torch.strided and not values.is_quantized and not empty
        return values if plain else None
    if not isinstance(values, (list, tuple)) and not hasattr(values, "__array__"):
        return None
    try:
        array = np.asarray(values)
        if array.dtype.kind in "iu" and array.dtype.itemsize > 4:
            array = array.astype(np.int64)
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except Exception:  # ragged lists, texts, objects, foreign classes: no numbers
        return None


def _placed(tensor: torch.Tensor, given: Any, field: str, device: torch.device | None) -> torch.Tensor:
    if device is None or tensor.device == device:
        return tensor
    if isinstance(given, torch.Tensor):
        fix = f'move one of them: {field}.to("{device}")'
        problem, found = "are on another device than the model", str(tensor.device)
        raise DataError(problem, field=field, found=found, expected=str(device), fix=fix)
    return tensor.to(device)


def refuse_unknown(owner: str, unknown: dict[str, Any], hints: dict[str, str]) -> None:
    """Refuse keyword arguments that a function does not have.

    Args:
        owner: the function's name.
        unknown: the arguments.
        hints: what to use instead, for names that other libraries have.

    Raises:
        ConfigError: naming the first one.
    """
    for name, value in unknown.items():
        fix = hints.get(name, "leave it out")
        raise ConfigError(f"is not an argument of {owner}", field=name, found=shown(value), fix=fix)
