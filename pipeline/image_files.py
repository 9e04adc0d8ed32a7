"""Image files that commands read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from foundation.errors import DataError
from foundation.images.config import Preprocess
from foundation.images.folder import image_files
from foundation.images.preprocess import decode_any
from pipeline.output_files import overviews
from stage1_tokenizer.tokenizer import TokenizerModel

Content = TypeVar("Content")


def readable(
    paths: Iterable[Path], read: Callable[[Path], Content], failed: list[str], *, desc: str
) -> Iterator[tuple[Path, Content]]:
    """The content of each file that can be read.

    Args:
        paths: image files.
        read: reads one, or raises.
        failed: gets a line for each file that cannot be read.
        desc: of the progress bar.
    """
    for path in tqdm(paths, desc=desc, unit="img", delay=2):
        try:
            content = read(path)
        except (DataError, OSError, ValueError) as error:
            failed.append(f"{path}: {error}")
            continue
        yield path, content


def file_name(text: str) -> str:
    """A text as a file name: letters, digits, - and _."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)[:80] or "image"


def read_pixels(tokenizer: TokenizerModel, path: Path, *, keep_size: bool) -> np.ndarray:
    """Read an image file as input of a tokenizer, (1, Y, X, C) pixels.

    Args:
        tokenizer: gives the preprocess.
        path: an image file.
        keep_size: crop to multiples of the stride instead of resizing to the tokenizer's size.

    Raises:
        DataError: the file cannot be decoded, or is too small.
    """
    preprocess = tokenizer.preprocess
    image = decode_any(path.read_bytes(), arrays=not preprocess.is_plain)
    pixels = preprocess.crop_to_multiple(image, tokenizer.config.side_multiple) if keep_size else preprocess(image)
    return pixels[None]


def files_below(paths: list[str], preprocess: Preprocess | None = None) -> list[Path]:
    """List the given image files and all image files below the given folders; with .npy files if they are wanted.

    Pictures of several images that commands wrote into a folder (``grid.png``) are passed over, and named on stderr.

    Raises:
        DataError: a path does not exist, or a folder holds no images.
    """
    files: list[Path] = []
    for each in map(Path, paths):
        if each.is_dir():
            files += _images_below(each, arrays=preprocess is not None and not preprocess.is_plain)
        elif each.is_file():
            files.append(each)
        else:
            raise DataError("no such file or folder", field="images", found=str(each), fix="check the path")
    return files


def _images_below(folder: Path, *, arrays: bool) -> list[Path]:
    found = [folder / name for name in image_files(folder, "images", arrays=arrays)]
    passed = {path.parent / name for path in found for name in overviews(path.parent)} if found else set()
    kept = [path for path in found if path not in passed]
    if len(kept) < len(found):
        names = ", ".join(sorted(path.name for path in set(found) - set(kept))[:3])
        print(f"passed over {len(found) - len(kept)} pictures of several images in {folder}: {names}", file=sys.stderr)
    if not kept:
        what, fix = "the folder holds only pictures of several images", "give image files"
        raise DataError(what, field="images", found=str(folder), fix=fix)
    return kept
