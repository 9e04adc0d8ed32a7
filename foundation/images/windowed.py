"""Order of training images that lie in archives or row groups: shuffled within a window, which is read ahead.

A source of such images offers ``groups``, the index of the first image of each archive or row group; ``streamed``, what
its files need, where they are not simply on a disk; and ``ahead(indices)``, which makes images ready in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from foundation.config import digest
from foundation.errors import ConfigError
from foundation.randomness import WindowedOrder

STREAMED_WINDOW = 16_384
"""images shuffled together where the recipe names no window and the data is streamed"""
_FITS = 0.9


@dataclass(frozen=True)
class Streamed:
    """What streamed images need on the disk.

    Attributes:
        n_bytes: of all files.
        cache_bytes: limit of what is kept.
    """

    n_bytes: int
    cache_bytes: int


class OrderAhead:
    """A windowed order that has its source read this window and the next one ahead.

    Args:
        order: of the examples.
        source: of the examples, by the same indices.
    """

    def __init__(self, order: WindowedOrder, source: Any) -> None:
        self.order, self._source = order, source
        self._told: tuple[int, int] | None = None

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(indices, epochs) of the samples at ``positions`` (B,) of the endless sequence."""
        if len(positions):
            self._tell(self.order.window_of(int(positions.min())))
        return self.order.at(positions)

    def _tell(self, window: tuple[int, int]) -> None:
        if window == self._told:
            return
        self._told = epoch, number = window
        last = number + 1 == self.order.n_windows
        following = (epoch + 1, 0) if last else (epoch, number + 1)
        groups = np.concatenate([self.order.groups_of(*each) for each in (window, following)])
        self._source.ahead(self.order.starts_G[groups])


def windowed_order(source: Any, window: int | None, seed: int) -> WindowedOrder | OrderAhead | None:
    """The order of a source's images, where it has groups and a window is set or the images are streamed.

    Args:
        source: see the module.
        window: ``DataConfig.shuffle_window``.
        seed: of the shuffling.

    Raises:
        ConfigError: the cache is too small for what two windows need.
    """
    size = shuffle_window(source, window)
    if size is None:
        return None
    n = len(source.ids)
    order = WindowedOrder(source.groups, n, seed, min(size, n))
    streamed: Streamed | None = getattr(source, "streamed", None)
    if streamed is None:
        return order
    _require_room(streamed, order, size)
    return OrderAhead(order, source)


def shuffle_window(source: Any, window: int | None) -> int | None:
    """Images that are shuffled together; None if it is the whole set."""
    if getattr(source, "groups", None) is None:
        return None
    return window if window is not None or getattr(source, "streamed", None) is None else STREAMED_WINDOW


def order_settings(source: Any, window: int | None) -> tuple[object, ...]:
    """What a windowed order depends on beside the seed and the number of images; empty for another order."""
    size = shuffle_window(source, window)
    return () if size is None else (size, digest(source.groups.tolist()))


def _require_room(streamed: Streamed, order: WindowedOrder, window: int) -> None:
    """Refuse a cache that would drop files of a window before it ends, so that they would be fetched many times."""
    needed = min(streamed.n_bytes, 2 * streamed.n_bytes // order.n_windows)
    if needed <= _FITS * streamed.cache_bytes:
        return
    raise ConfigError(
        "is too small for two shuffle windows",
        field="data.remote_cache_gib",
        found=f"{streamed.cache_bytes / 2**30:.3g} GiB",
        expected=f"{needed / _FITS / 2**30:.3g} GiB for windows of {window:,} images",
        fix="increase it, or decrease data.shuffle_window",
    )


def chosen_groups(source: Any, indices: np.ndarray) -> np.ndarray | None:
    """Groups of some images of a source: where, in ``indices``, another group begins; None without groups."""
    groups = getattr(source, "groups", None)
    if groups is None or not len(indices):
        return None
    which = np.searchsorted(groups, indices, side="right")
    return np.flatnonzero(np.diff(which, prepend=-1)).astype(np.int64)
