"""Memory that worker processes and the process that trains share, for the batches between them.

Torch hands tensors over in new shared memory each time, of which a container has 64 MiB (/dev/shm), and whose pages the
system clears one by one: 230 us for an image of 256 x 256 in a virtual machine, a tenth of decoding it. Here workers
write into pages that stay, and the process that trains copies a batch once, into pinned memory for a GPU.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

BYTES_OF_A_SLOT = 256 << 20
"""of address space; memory is taken only where a batch is written"""
_ALIGNED = 64
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's value, which older Pythons do not name


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        first: byte within the slot.
        shape, dtype: of the tensor.
    """

    first: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """A batch in shared memory: its number, and where its tensors are."""

    number: int
    places: dict[str, Place]


class SharedBatches:
    """Slots for batches, which processes that are forked afterwards share.

    Args:
        n_slots: batches that are there at a time.

    Raises:
        OSError: the system refuses the address space.
    """

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self._memory = mmap.mmap(-1, n_slots * BYTES_OF_A_SLOT, flags=flags)

    def store(self, number: int, batch: dict[str, torch.Tensor]) -> Stored | None:
        """Write batch ``number`` over the one ``n_slots`` before; None if it is larger than a slot."""
        stored, first = Stored(number, {}), _ALIGNED  # behind the number
        for name, value in batch.items():
            stored.places[name] = Place(first, tuple(value.shape), value.dtype)
            first += -(-value.nbytes // _ALIGNED) * _ALIGNED
        if first > BYTES_OF_A_SLOT:
            return None
        self._number_in(stored)[0] = number
        for name, value in batch.items():
            np.copyto(self._bytes(stored, stored.places[name]), _bytes_of(value))
        return stored

    def take(self, stored: Stored, *, pinned: bool) -> dict[str, torch.Tensor]:
        """A copy of a batch, in pinned memory if asked for.

        Raises:
            RuntimeError: another batch was written over it.
        """
        batch = {}
        for name, place in stored.places.items():
            batch[name] = torch.empty(place.shape, dtype=place.dtype, pin_memory=pinned)
            np.copyto(_bytes_of(batch[name]), self._bytes(stored, place))  # by NumPy, which starts no threads
        found = int(self._number_in(stored)[0])
        if found != stored.number:
            raise RuntimeError(f"batch {found} was written over batch {stored.number} before that was taken")
        return batch

    def _number_in(self, stored: Stored) -> np.ndarray:
        first = stored.number % self.n_slots * BYTES_OF_A_SLOT
        return np.frombuffer(self._memory, np.int64, 1, first)

    def _bytes(self, stored: Stored, place: Place) -> np.ndarray:
        first = stored.number % self.n_slots * BYTES_OF_A_SLOT + place.first
        return np.frombuffer(self._memory, np.uint8, place.n_bytes, first)


def shared_batches(n_slots: int) -> SharedBatches | None:
    """Slots, or None where processes do not start by fork or the system refuses."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            return SharedBatches(n_slots)
    return None


def pinned_copy(value: torch.Tensor) -> torch.Tensor:
    """A tensor of the CPU, copied into pinned memory without starting threads."""
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    np.copyto(_bytes_of(copy), _bytes_of(value))
    return copy


def _bytes_of(value: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()
