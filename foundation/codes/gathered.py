"""Rows of a source of codes, gathered: checked, with classes by name and a held-out part.

Rows of one image stay on one side. A row without an image id takes a hash of its codes as its id, so that equal rows
stay on one side too.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundation.codes.sources import CodeRows
from foundation.codes.tables import CodeBlock
from foundation.errors import DataError
from foundation.images.class_names import in_order
from foundation.images.split import held_out
from foundation.storage import durable

_BLOCK = 8192
_LARGEST = 2**31 - 1
_HELD_OUT = ("validation", "val", "valid", "test")  # names of a held-out split, the first that is there


@dataclass(frozen=True)
class Gathered:
    """N rows of codes.

    Attributes:
        codes_NT: int32, in a temporary file that goes with this object.
        shape: of one row's codes in the source.
        image_ids: N names of images.
        views_N: uint8.
        hashes: N digests of the codes of each row.
        labels_N: (N,) int64, or None without classes.
        class_names: in label order; each has training rows.
        held_N: whether a row is held out.
        notes: what was decided, a sentence each.
    """

    codes_NT: np.ndarray
    shape: tuple[int, ...]
    image_ids: list[str]
    views_N: np.ndarray
    hashes: list[bytes]
    labels_N: np.ndarray | None
    class_names: tuple[str, ...]
    held_N: np.ndarray
    notes: tuple[str, ...]

    @property
    def highest(self) -> int:
        """Largest code."""
        return max(int(self.codes_NT[start : start + _BLOCK].max()) for start in range(0, len(self.codes_NT), _BLOCK))

    @property
    def identity(self) -> str:
        """SHA-256 of every row in order: image, view, codes, class, side."""
        found = hashlib.sha256(repr(self.class_names).encode())
        labels_N = np.zeros(0) if self.labels_N is None else self.labels_N
        for array in (self.views_N, labels_N, self.held_N):
            found.update(array.tobytes() + b"|")
        for image_id, hashed in zip(self.image_ids, self.hashes, strict=True):
            found.update(hashed + image_id.encode("utf-8", "surrogatepass") + b"\0")
        return found.hexdigest()

    def keys(self) -> dict[tuple[str, int, int], tuple[bytes, str, str]]:
        """Each row by image, view and repetition => its codes, class and split, to compare two sets of rows."""
        names = [""] * len(self.image_ids) if self.labels_N is None else [self.class_names[i] for i in self.labels_N]
        splits = np.where(self.held_N, "validation", "train").tolist()
        return row_keys(self.image_ids, self.views_N, self.hashes, names, splits)


def gather(several: Sequence[CodeRows], folder: Path, share: float, field: str) -> Gathered:
    """Read every row of a source once.

    Args:
        several: its splits.
        folder: for a temporary file of the codes, 4 bytes each.
        share: of the images to hold out where the source has no split for it, between 0 and 1.
        field: names the source in messages.

    Raises:
        DataError: codes that are negative or of several shapes, missing labels, or a split that cannot be used.
        StorageError: the disk refused.
    """
    train, held, notes = _choose(several, field)
    chosen = [each for each in (train, held) if each is not None]
    for each in chosen[1:]:
        what = "has rows of another shape than the training split"
        DataError.unless(each.shape == train.shape, what, field=each.where, found=each.shape, expected=train.shape)
    scan = _Scan(folder, int(np.prod(train.shape)))
    for each in chosen:
        scan.read(each)
    given_N = np.repeat([False, True][: len(chosen)], [each.n_rows for each in chosen])
    names = scan.classes(chosen)
    numbers = None if names is None else np.unique(names, return_inverse=True)[1]
    if held is None:
        given_N = _hold_out(scan.image_ids, share, numbers, field)
    else:
        notes += _straddling(scan, given_N, held, is_ours=held.listed is not None)
    labels_N, class_names, dropped = _number(names, given_N, chosen[0].class_names, field)
    if dropped:
        notes.append(f"{dropped:,} of {dropped + len(class_names):,} classes have no training rows and are left out")
    views_N = np.concatenate(scan.views)
    return Gathered(
        scan.codes(), train.shape, scan.image_ids, views_N, scan.hashes, labels_N, class_names, given_N, tuple(notes)
    )


def row_keys(
    image_ids: Sequence[str], views_N: np.ndarray, hashes: Sequence[bytes], names: Sequence[str], splits: Sequence[str]
) -> dict[tuple[str, int, int], tuple[bytes, str, str]]:
    """See ``Gathered.keys``."""
    found: dict[tuple[str, int, int], tuple[bytes, str, str]] = {}
    times: dict[tuple[str, int], int] = {}
    for image_id, view, *value in zip(image_ids, views_N.tolist(), hashes, names, splits, strict=True):
        n = times[image_id, view] = times.get((image_id, view), -1) + 1
        found[image_id, view, n] = tuple(value)  # type: ignore[assignment]
    return found


def hash_rows(codes_NT: np.ndarray) -> list[bytes]:
    """A digest of the codes of each row, whatever their type of integers."""
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in codes_NT.astype("<i4")]


class _Scan:
    """What is read of the rows, split after split; the codes go to a file without a name."""

    def __init__(self, folder: Path, n_codes: int) -> None:
        self.n_codes, self.image_ids, self.hashes = n_codes, list[str](), list[bytes]()
        self.views: list[np.ndarray] = []
        self._labels: list[list[Any] | None] = []
        with durable.writing(folder / "codes"):
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed with the last array

    def read(self, rows: CodeRows) -> None:
        labels: list[Any] = []
        n_labelled = 0
        for start in range(0, rows.n_rows, _BLOCK):
            block = rows.read(start, min(start + _BLOCK, rows.n_rows))
            codes_BT = self._checked(block, start, rows.where)
            with durable.writing(Path(rows.where)):
                self._file.write(codes_BT.tobytes())
            hashes = hash_rows(codes_BT)
            self.hashes += hashes
            self.views.append(np.zeros(len(codes_BT), np.uint8) if block.views is None else block.views)
            self.image_ids += [f"codes-{each.hex()}" for each in hashes] if block.image_ids is None else block.image_ids
            labels += block.labels or []
            n_labelled += len(codes_BT) if block.labels is not None else 0
        self._labels.append(labels if n_labelled else None)

    def codes(self) -> np.ndarray:
        self._file.flush()
        return np.memmap(self._file, "<i4", "r", shape=(len(self.image_ids), self.n_codes))

    def classes(self, chosen: Sequence[CodeRows]) -> list[str] | None:
        """The class of each row by name; None without labels."""
        if all(each is None for each in self._labels):
            return None
        names: list[str] = []
        for labels, rows in zip(self._labels, chosen, strict=True):
            fix = "give every split labels, or none"
            if labels is None:
                raise DataError("has no labels, where another split has", field=rows.where, fix=fix)
            names += _class_texts(labels, rows)
        return names

    def _checked(self, block: CodeBlock, start: int, where: str) -> np.ndarray:
        codes = block.codes.reshape(len(block.codes), -1)
        fix = "train-prior on that dataset's own run folder, or keep the rows of one grid, without the column"
        one_shape = block.grids is None or not block.grids.any()
        what, found = "holds codes of images of several shapes, which cannot be gathered", "a column grid"
        DataError.unless(one_shape, what, field=f"{where}: grid", found=found, expected="one shape", fix=fix)
        if block.views is not None and block.image_ids is None:
            fix = "keep the column image_id beside it, or leave view out where each row is an image of its own"
            raise DataError("needs image_id: views of one image stay together", field=f"{where}: view", fix=fix)
        if codes.shape[1] != self.n_codes:
            found = f"{codes.shape[1]} codes in row {start}"
            raise DataError("has rows of several lengths", field=where, found=found, expected=self.n_codes)
        low_B, high_B = codes.min(1), codes.max(1)
        wrong = np.flatnonzero((low_B < 0) | (high_B > _LARGEST))
        if len(wrong):
            i = int(wrong[0])
            found, fix = f"{low_B[i]}..{high_B[i]} in row {start + i}", "leave out rows with masked or missing codes"
            raise DataError("is not a code", field=f"{where}: codes", found=found, expected="0 or more", fix=fix)
        return codes.astype("<i4")


def _choose(several: Sequence[CodeRows], field: str) -> tuple[CodeRows, CodeRows | None, list[str]]:
    """The training split, the held-out split if there is one, and what was decided."""
    by_name = {each.split: each for each in several}
    if set(by_name) <= {"", "train"}:
        return several[0], None, []
    held = next((name for name in _HELD_OUT if name in by_name), None)
    if "train" not in by_name:
        found, expected = ", ".join(by_name), "train, and validation beside it"
        fix = "save the one split that you mean alone, or rename the splits"
        raise DataError("has no split train", field=field, found=found, expected=expected, fix=fix)
    notes = [f"the split {held} is the held-out part"] if held not in (None, "validation") else []
    others = sorted(set(by_name) - {"train", held})
    if others:
        notes.append(f"not used: {', '.join(f'{by_name[name].n_rows:,} rows of {name}' for name in others)}")
    return by_name["train"], by_name[held] if held else None, notes


def _class_texts(labels: list[Any], rows: CodeRows) -> list[str]:
    """Class of each row as text: numbers by the names that the source gives them."""
    field, names = f"{rows.where}: label", rows.class_names
    whole = [int(each) if isinstance(each, float) and each.is_integer() else each for each in labels]
    kinds = {type(each) for each in whole}
    if not kinds <= {int} and not kinds <= {str}:
        found, fix = ", ".join(sorted(each.__name__ for each in kinds)), "convert the column, or fill in missing labels"
        raise DataError("is no class", field=field, found=found, expected="whole numbers, or text", fix=fix)
    if kinds == {str}:
        return [str(each) for each in whole]
    low, high = min(whole), max(whole)
    limit = len(names) - 1 if names else _LARGEST
    expected = f"0..{limit}, the {len(names):,} class names" if names else "0 or more"
    fix = "leave out rows without a class: .filter(lambda row: row['label'] >= 0)"
    inside = low >= 0 and high <= limit
    found = f"{low}..{high}"
    DataError.unless(inside, "is outside of the classes", field=field, found=found, expected=expected, fix=fix)
    return [names[each] for each in whole] if names else [str(each) for each in whole]


def _number(
    names: list[str] | None, held_N: np.ndarray, given: tuple[str, ...], field: str
) -> tuple[np.ndarray | None, tuple[str, ...], int]:
    """Class numbers, the names of classes with training rows, and how many given names have none."""
    if names is None:
        return None, (), 0
    trained = {name for name, is_held in zip(names, held_N.tolist(), strict=True) if not is_held}
    classes = tuple(name for name in given if name in trained) if given else in_order(trained)
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(names) - trained)
    found, fix = ", ".join(unknown[:10]), "leave those rows out, or join them to the training rows"
    what = "has held-out rows of classes without training rows"
    DataError.unless(not unknown, what, field=f"{field}: label", found=found, fix=fix)
    return np.array([number[name] for name in names], np.int64), classes, len(given) - len(classes) if given else 0


def _hold_out(image_ids: Sequence[str], share: float, labels_N: np.ndarray | None, field: str) -> np.ndarray:
    """Hold out images, each with all of its rows."""
    first = {image_id: row for row, image_id in reversed(list(enumerate(image_ids)))}
    names, rows = list(first), list(first.values())
    held = held_out(names, share, None if labels_N is None else labels_N[rows], field=field)
    of_image = dict(zip(names, held.tolist(), strict=True))
    return np.array([of_image[image_id] for image_id in image_ids], bool)


def _straddling(scan: _Scan, held_N: np.ndarray, held: CodeRows, *, is_ours: bool) -> list[str]:
    """Refuse a held-out split with images of the training split; of a token dataset, only count them."""
    keys = zip(scan.image_ids, np.concatenate(scan.views).tolist(), scan.hashes, held_N.tolist(), strict=True)
    trained: dict[str, dict[int, bytes]] = {}
    both = set()
    for image_id, view, hashed, is_held in keys:  # training rows come first
        if not is_held:
            trained.setdefault(image_id, {})[view] = hashed
        elif image_id in trained and trained[image_id].get(view, hashed) == hashed:
            both.add(image_id)  # another image of the same name has other codes in that view
    if not both:
        return []
    if not is_ours:
        fix = "split by image_id, or save all rows in one split: a part is then held out by image"
        found = f"{len(both):,} images, e.g. {min(both)}"
        raise DataError("has images of the training split", field=held.where, found=found, fix=fix)
    return [f"{len(both):,} held-out images are training images too: their figures are of memory"]
