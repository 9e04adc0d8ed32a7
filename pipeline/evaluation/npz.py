"""Images in one .npz file, as evaluators of other projects read them (ADM; Dhariwal and Nichol 2021, arXiv:2105.05233).

``arr_0`` holds images (N, Y, X, 3) of uint8, ``arr_1`` their classes (N,) of int64, if they have some.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from foundation.errors import DataError
from foundation.images.preprocess import require_picture

_IMAGES, _LABELS = "arr_0", "arr_1"
_COPIED_BYTES = 2**20


class PixelSpool:
    """Pixels of images on the disk, appended in batches; the space is free again when it is closed."""

    def __init__(self) -> None:
        self._file, self._shape, self._n = tempfile.TemporaryFile(), (0, 0, 0), 0  # noqa: SIM115

    def __len__(self) -> int:
        return self._n

    def add(self, pixels_BYXC: np.ndarray) -> None:
        """Append images, (B, Y, X, 1 or 3) uint8, all of one shape; grey becomes three equal channels.

        Raises:
            DataError: no such pixels, or of another shape than those before.
        """
        require_picture("images", pixels_BYXC, 4)
        shape = (*pixels_BYXC.shape[1:3], 3)
        same, fix = self._n == 0 or shape == self._shape, "an .npz file holds images of one shape"
        what = "are of another shape than those before"
        DataError.unless(same, what, field="images", found=shape, expected=self._shape, fix=fix)
        self._file.write(np.ascontiguousarray(np.broadcast_to(pixels_BYXC, (len(pixels_BYXC), *shape))).tobytes())
        self._shape, self._n = shape, self._n + len(pixels_BYXC)

    def write_npz(self, path: Path, labels_N: np.ndarray | None) -> None:
        """Write all images, and their classes if they have some, in constant memory; equal content, equal bytes.

        Args:
            path: of the file, usually a temporary one.
            labels_N: class numbers, or None.

        Raises:
            OSError: the disk refused.
        """
        self._file.seek(0)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(zipfile.ZipInfo(f"{_IMAGES}.npy"), "w", force_zip64=True) as member:
                _write_header(member, np.dtype(np.uint8), (self._n, *self._shape))
                shutil.copyfileobj(self._file, member, _COPIED_BYTES)
            if labels_N is not None:
                with archive.open(zipfile.ZipInfo(f"{_LABELS}.npy"), "w") as member:
                    _write_header(member, np.dtype(np.int64), (len(labels_N),))
                    member.write(labels_N.astype(np.int64).tobytes())

    def close(self) -> None:
        """Let the pixels go."""
        self._file.close()


class NpzSource:
    """The images of an .npz file as a source, see ``foundation.images.sources``.

    Args:
        path: of the file.
        class_names: of the numbers in ``arr_1``; without names they count as no classes.

    Raises:
        DataError: no such images, or classes that are not there.
    """

    def __init__(self, path: Path, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        expected = "arr_0: (N, Y, X, 3 or 1) of uint8; arr_1, if any: (N,) whole numbers"
        try:
            with np.load(path, allow_pickle=False) as file:
                found = ", ".join(file.files)
                self._images = file[_IMAGES] if _IMAGES in file.files else np.empty(0)
                labels = file[_LABELS] if _LABELS in file.files and class_names else None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError("cannot be read as .npz", field=str(path), found=error, expected=expected) from error
        shape, kind = self._images.shape, self._images.dtype
        sound = len(shape) == 4 and shape[-1] in (1, 3) and shape[0] > 0 and kind == np.uint8
        what = "does not hold images"
        DataError.unless(sound, what, field=str(path), found=f"{found}: {shape} of {kind}", expected=expected)
        if labels is not None:
            known = labels.shape == shape[:1] and np.issubdtype(labels.dtype, np.integer)
            known = known and labels.min() >= 0 and labels.max() < len(class_names)
            expected = f"one of 0..{len(class_names) - 1} for each of {shape[0]:,} images"
            DataError.unless(bool(known), "holds other classes", field=f"{path}: {_LABELS}", expected=expected)
        self.labels: np.ndarray | None = None if labels is None else labels.astype(np.int64)
        self.ids = [f"{path.name}#{i}" for i in range(shape[0])]

    def read(self, index: int) -> Image.Image:
        """Image ``index``."""
        image_YXC = self._images[index]
        return Image.fromarray(image_YXC[..., 0] if image_YXC.shape[-1] == 1 else image_YXC)

    def some(self, indices: np.ndarray) -> NpzSource:
        """See ``some_images``."""
        chosen = object.__new__(NpzSource)
        chosen.class_names, chosen._images = self.class_names, self._images[indices]
        chosen.labels = None if self.labels is None else self.labels[indices]
        chosen.ids = [self.ids[int(i)] for i in indices]
        return chosen


def _write_header(stream: IO[bytes], kind: np.dtype, shape: tuple[int, ...]) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, about)
