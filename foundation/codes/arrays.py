"""Codes in NumPy files: ``.npy``, or ``.npz`` with ``codes`` and, beside them, ``labels`` and ``image_ids``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.codes.tables import CodeBlock
from foundation.errors import DataError

_NAMES = {"labels": "labels", "label": "labels", "image_ids": "image_ids", "image_id": "image_ids"}
_NAMES |= {"views": "views", "view": "views", "class_names": "class_names", "seeds": "seeds"}
_CODES = "whole numbers from 0, (N, T), (N, H, W) or (N, H, W, D)"


@dataclass(frozen=True)
class CodeArrays:
    """The arrays of a file, of N rows each; see ``CodeBlock``.

    Attributes:
        codes: (N, ...) integers; of a ``.npy`` file they stay on the disk until they are read.
        labels, image_ids, views: of each row, or None.
        class_names: names of the labels; empty without them.
    """

    codes: np.ndarray
    labels: np.ndarray | None = None
    image_ids: np.ndarray | None = None
    views: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def read(self, start: int, stop: int) -> CodeBlock:
        """Rows ``start..stop`` in this machine's byte order."""
        codes = np.array(self.codes[start:stop], dtype=self.codes.dtype.newbyteorder("="), order="C")
        labels, ids = (None if each is None else each[start:stop].tolist() for each in (self.labels, self.image_ids))
        views = None if self.views is None else self.views[start:stop].astype(np.uint8)
        return CodeBlock(codes, labels, None if ids is None else [str(each) for each in ids], views)


def open_arrays(path: Path) -> CodeArrays:
    """Open a ``.npy`` or ``.npz`` file.

    Raises:
        DataError: unreadable, without codes, or arrays of several lengths.
    """
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        found = {"codes": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        fix = "save plain numbers: numpy.save(FILE, codes, allow_pickle=False)"
        raise DataError(f"cannot be read as NumPy arrays: {error}", field=str(path), fix=fix) from error
    if "codes" not in found and len(found) == 1:
        found = {"codes": next(iter(found.values()))}
    known = {"codes": found["codes"]} if "codes" in found else {}
    known |= {_NAMES[name]: array for name, array in found.items() if name in _NAMES}
    others = sorted(set(found) - {"codes", *_NAMES})
    fix = f"name the codes codes; beside them, {', '.join(_NAMES)} are known"
    named = "codes" in known and not others
    DataError.unless(named, "has arrays of unknown names", field=str(path), found=", ".join(found), fix=fix)
    _require_codes(known["codes"], path)
    names = tuple(str(each) for each in known.pop("class_names", np.zeros(0)).tolist())
    for name, array in known.items():
        same, expected = array.ndim > 0 and len(array) == len(known["codes"]), f"{len(known['codes']):,} rows"
        DataError.unless(same, "has another length", field=f"{path}: {name}", found=array.shape, expected=expected)
    known.pop("seeds", None)
    return CodeArrays(**known, class_names=names)


def _require_codes(codes: np.ndarray, path: Path) -> None:
    found = f"{codes.shape} {codes.dtype}"
    kinds = {"f": "round and convert them, if they are codes: codes.round().astype('int64')"}
    kinds |= {"b": "convert them, if they are codes of 0 and 1: codes.astype('uint8')"}
    if codes.dtype.kind not in "iu":
        what, fix = "holds no whole numbers", kinds.get(codes.dtype.kind)
        raise DataError(what, field=f"{path}: codes", found=found, expected=_CODES, fix=fix)
    if codes.ndim not in (2, 3, 4):
        fix = "put the images first: one image is codes[None]" if codes.ndim == 1 else None
        raise DataError("holds no rows of codes", field=f"{path}: codes", found=found, expected=_CODES, fix=fix)
