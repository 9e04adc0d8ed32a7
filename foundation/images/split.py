"""Held-out split: a function of each image's id, not of the number or the order of images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from foundation.errors import DataError


def held_out(
    ids_N: Sequence[str],
    share: float,
    labels_N: np.ndarray | None = None,
    known: Mapping[str, bool] | None = None,
    field: str = "data.source",
) -> np.ndarray:
    """Decide which images are held out of training.

    An image is held out if the hash of its id lies below ``share``, whatever other images there are. Two exceptions
    keep a small set usable: a class of which every image would be held out keeps one for training, and if no image
    would be held out, one is. A part that ``known`` gives is never changed.

    Args:
        ids_N: names of N images.
        share: of images to hold out, between 0 and 1.
        labels_N: (N,) class numbers, or None without classes.
        known: earlier decisions by id: whether the image is held out.
        field: the source's name in error messages.

    Returns:
        (N,) bool, at least one True and one False.

    Raises:
        DataError: fewer than two images, or each class has a single one.
    """
    earlier = known or {}
    hashes_N = np.array([_hash(name) for name in ids_N])
    held_N = np.array([earlier.get(name, below) for name, below in zip(ids_N, hashes_N < share, strict=True)], bool)
    open_N = np.array([name not in earlier for name in ids_N], bool)
    labels_N = np.zeros(len(ids_N), np.int64) if labels_N is None else labels_N
    kept = np.zeros(labels_N.max(initial=0) + 1, np.int64)
    np.add.at(kept, labels_N[~held_N], 1)
    for i in np.argsort(-hashes_N, kind="stable"):  # the highest hash of a class first
        if held_N[i] and open_N[i] and not kept[labels_N[i]]:
            held_N[i], kept[labels_N[i]] = False, 1
    if not held_N.any():
        spare_N = np.flatnonzero(open_N & (kept[labels_N] > 1))
        if not len(spare_N):
            found, expected = f"{len(ids_N)} images, none of which can be held out", "a class with at least 2 images"
            raise DataError("too few images for a validation part", field=field, found=found, expected=expected)
        held_N[spare_N[np.argmin(hashes_N[spare_N])]] = True
    return held_N


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    data = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, person=b"held-out").digest()
    return (int.from_bytes(data, "little") >> 11) * 2.0**-53
