from __future__ import annotations

from pathlib import Path

import numpy as np

from foundation.errors import DataError
from foundation.images.preprocess import decode_image
from foundation.images.sources import image_files
from stage1_tokenizer.tokenizer import TokenizerModel


def file_name(text: str) -> str:
    """A text as a file name: letters, digits, - and _."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)[:80] or "image"


def read_pixels(tokenizer: TokenizerModel, path: Path, *, keep_size: bool) -> np.ndarray:
    """An image file as the tokenizer takes it, (1, Y, X, C) uint8.

    Args:
        tokenizer: knows the preprocess.
        path: an image file.
        keep_size: crop to multiples of the stride instead of resizing to the tokenizer's own size.

    Raises:
        DataError: the file cannot be decoded, or is too small.
    """
    image = decode_image(path.read_bytes())
    if keep_size:
        return tokenizer.preprocess.keeping_size(image, tokenizer.config.side_multiple)[None]
    return tokenizer.preprocess(image)[None]


def files_below(paths: list[str]) -> list[Path]:
    """Image files: those given, and all below the folders given.

    Raises:
        DataError: a path that does not exist, or a folder without images.
    """
    files: list[Path] = []
    for each in map(Path, paths):
        if each.is_dir():
            files += [each / name for name in image_files(each, "images")]
        elif each.is_file():
            files.append(each)
        else:
            raise DataError("no such file or folder", field="images", found=str(each), fix="check the path")
    return files
