"""What ``tessera edit`` does: pictures of given images, what is kept of them, and the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foundation.errors import ConfigError, DataError
from foundation.images.preprocess import decode_image, to_pil, to_unit_range
from foundation.storage import durable
from pipeline.edit_cli import Edit
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.inputs import below_rows, grown, pixel_mask
from pipeline.generation.options import Speed
from pipeline.generation.outputs import grid_image
from pipeline.image_files import file_name, files_below, read_pixels
from pipeline.outputs import output_folder
from pipeline.runs.models import open_generator

_BATCH = 16  # image files at once
_HIDDEN = 128


def edit_to_folder(
    method: str,
    run: str,
    images: list[str] | str,
    how: dict[str, Any],
    edit: Edit,
    sampling: dict[str, Any],
    speed: Speed,
    *,
    out: str,
) -> None:
    """Edit image files; for each a row of pictures, and each result by itself.

    Args:
        method: of ``ImageGenerator``.
        run: the run folder, or a model repository's name.
        images: files and folders.
        how: arguments of the method.
        edit: what all edits take.
        sampling: settings that were given.
        speed: of drawing codes.
        out: the folder for the pictures.
    """
    generator = open_generator(run, edit.device, speed)
    paths = files_below([images] if isinstance(images, str) else images)
    folder = output_folder(out, run)
    label = None if edit.class_label is None else str(edit.class_label)
    pixels, names, failed = _read(generator, paths)
    for line in failed:
        print(f"unusable: {line}")
    if not names:
        raise DataError("none of the images can be used", field="images", found=f"{len(failed)} unusable")
    seed = int(torch.randint(2**31, ()).item()) if edit.seed is None else edit.seed
    for first in range(0, len(names), _BATCH):
        batch = np.stack(pixels[first : first + _BATCH])
        output = getattr(generator, method)(
            to_unit_range(batch), class_labels=label, num_images=edit.num_images, best_of=edit.best_of,
            seed=seed + first * edit.num_images, **how, **sampling,
        )  # fmt: skip
        shown = _kept(generator, batch, how)
        for i, name in enumerate(names[first : first + _BATCH]):
            results = output.images[i * edit.num_images : (i + 1) * edit.num_images]
            stem = f"{first + i:04d}-{file_name(Path(name).stem)}"
            given = [to_pil(batch[i]), *([to_pil(shown[i])] if shown is not None else [])]
            _write(folder, stem, given, results)
            print(f"{name}  ->  {folder / f'{stem}-all.png'}")
    print(f"{len(names)} images, {edit.num_images} results each, in {folder} (seeds from {seed})")


def read_mask(mask: str | None) -> Image.Image:
    """A mask's file.

    Raises:
        ConfigError: none was given.
        DataError: it cannot be read.
    """
    if mask is None:
        raise ConfigError("is missing", field="--mask", expected="an image file, white where something new is wanted")
    try:
        return decode_image(Path(mask).read_bytes())
    except (DataError, OSError) as error:
        raise DataError(f"cannot be used: {error}", field="--mask", found=mask, fix="give an image file") from error


def _read(generator: ImageGenerator, paths: list[Path]) -> tuple[list[np.ndarray], list[str], list[str]]:
    pixels, names, failed = [], [], []
    for path in paths:
        try:
            pixels.append(read_pixels(generator.tokenizer, path, keep_size=False)[0])
            names.append(str(path))
        except (DataError, OSError, ValueError) as error:
            failed.append(f"{path}: {error}")
    return pixels, names, failed


def _kept(generator: ImageGenerator, pixels_BYXC: np.ndarray, how: dict[str, Any]) -> np.ndarray | None:
    """The images with what is drawn anew in grey; None where that is not a region."""
    spec = generator.spec
    if "rows" in how:
        mask_BYX = below_rows(how["rows"], spec)
    elif "mask" in how:
        mask_BYX = grown(pixel_mask(how["mask"], spec), how["grow"])
    else:
        return None
    return kept_pixels(pixels_BYXC, mask_BYX.numpy())


def kept_pixels(pixels_BYXC: np.ndarray, mask_BYX: np.ndarray) -> np.ndarray:
    """Images with what a mask covers in grey, (B, Y, X, C) uint8."""
    return np.where(mask_BYX[..., None], np.uint8(_HIDDEN), pixels_BYXC)


def _write(folder: Path, stem: str, given: list[Image.Image], results: list[Image.Image]) -> None:
    with durable.writing(folder / f"{stem}-all.png"):
        for i, image in enumerate(results):
            image.save(folder / f"{stem}-{i}.png")
        grid_image([*given, *results], len(given) + len(results)).save(folder / f"{stem}-all.png")
