"""What a pickle without execution yields: records of names and objects that do nothing, and tensors read on demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from foundation.errors import CheckpointError

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Element types by the name of the storage class."""
_MAX_SIDES = 16


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names. It is never looked up.

    Attributes:
        path: module and name, e.g. ``torch.nn.modules.container.Sequential``.
    """

    path: str


@dataclass(eq=False)
class PickledObject:
    """An object that a pickle makes by a call: the call is recorded and never made.

    Attributes:
        maker: what would have been called, mostly a ``Name``.
        arguments: what it would have been called with.
        state: what would have been set on the object.
        items, pairs: what would have been appended to it or set in it.
    """

    maker: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def __repr__(self) -> str:  # without what it holds, which may be nested without end
        return f"<pickled {self.maker.path if isinstance(self.maker, Name) else 'object'}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The state if it is a dictionary, as a module's is; else an empty one."""
        return self.state if isinstance(self.state, dict) else {}


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """One tensor.

    Attributes:
        shape: its sides.
        dtype: its element type.
        read: its values.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def n_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Storage:
    """A flat array that tensors are views of.

    Attributes:
        dtype: element type.
        n_elements: length.
        read: (n_elements,) values.
    """

    dtype: torch.dtype
    n_elements: int
    read: Callable[[], torch.Tensor]

    def view(self, offset: object, size: object, stride: object) -> LazyTensor:
        """The tensor at ``offset`` elements with these sides and strides.

        Raises:
            CheckpointError: not whole numbers, a view that reaches beyond the storage, or repeats its elements.
        """
        sides, steps, start = _naturals(size), _naturals(stride), _naturals((offset,))
        if sides is None or steps is None or start is None or len(sides) != len(steps):
            raise CheckpointError("holds a damaged tensor", found=f"offset {offset!r}, sides {size!r}"[:200])
        n = math.prod(sides)
        reach = start[0] + sum((side - 1) * step for side, step in zip(sides, steps, strict=True)) + 1 if n else 0
        if reach > self.n_elements or n > self.n_elements:
            what, expected = "holds a tensor that is larger than its storage", f"at most {self.n_elements} elements"
            raise CheckpointError(what, found=f"sides {sides}", expected=expected)

        def read() -> torch.Tensor:
            return torch.as_strided(self.read(), sides, steps, start[0]) if n else torch.zeros(sides, dtype=self.dtype)

        return LazyTensor(sides, self.dtype, read)


def from_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    """(N,) little-endian elements."""
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.zeros(0, dtype=dtype)


def _naturals(values: object) -> tuple[int, ...] | None:
    """The values as a tuple if they are whole numbers of at least 0."""
    if not isinstance(values, (tuple, list)) or len(values) > _MAX_SIDES:
        return None
    return tuple(values) if all(type(each) is int and 0 <= each < 2**63 for each in values) else None
