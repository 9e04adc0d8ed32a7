"""What the commands of ``cli.py`` that need a tokenizer alone do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from foundation.errors import ConfigError, DataError
from foundation.hardware import usable_device
from foundation.images.preprocess import to_uint8, to_unit_range
from foundation.storage import durable
from pipeline.image_files import file_name
from pipeline.outputs import output_folder, picture_path
from pipeline.runs.recipe import tokenizer_folder
from stage1_tokenizer.tokenizer import TokenizerModel

_CHECKED = 64  # images


def open_tokenizer(run: str, device: str) -> TokenizerModel:
    """The tokenizer of a run folder, or a tokenizer folder itself.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: a device that cannot be used.
    """
    root = Path(run)
    tokenizer = TokenizerModel.load(root / "tokenizer" if (root / "tokenizer").is_dir() else root)
    return tokenizer.to(usable_device(device))


def reconstruct_to_folder(run: str, images: list[str], *, keep_size: bool, out: str, device: str) -> None:
    """Reconstruct files and folders; pictures and a line with the PSNR of each."""
    from pipeline.evaluation.reconstruction import reconstruct_files
    from pipeline.image_files import files_below

    tokenizer = open_tokenizer(run, device)
    paths = files_below(images)
    folder = output_folder(out, run)
    done, failed = reconstruct_files(tokenizer, paths, keep_size=keep_size)
    for i, each in enumerate(done):
        path = folder / f"{i:04d}-{file_name(Path(each.image_id).stem)}.png"
        with durable.writing(path):
            each.pair.save(path)
        print(f"{each.psnr:6.2f} dB  {each.image_id}  ->  {path}")
    for line in failed:
        print(f"unusable: {line}")
    if not done:
        raise DataError("none of the images can be used", field="images", found=f"{len(failed)} unusable")
    print(f"mean PSNR {sum(each.psnr for each in done) / len(done):.2f} dB over {len(done)} images")


def interpolate_to_file(run: str, first: str, last: str, *, steps: int, out: str, device: str) -> None:
    """Decode points between two images; one strip."""
    from pipeline.evaluation.reconstruction import side_by_side
    from pipeline.image_files import read_pixels
    from stage1_tokenizer.interpolate import interpolate

    if steps < 2:
        raise ConfigError("is too few", field="--steps", found=steps, expected="2 or more: both ends count")
    path = picture_path(out)
    tokenizer = open_tokenizer(run, device)
    pixels = []
    for name in (first, last):
        if not Path(name).is_file():
            raise DataError("no such file", field="images", found=name, fix="give two image files")
        try:
            pixels.append(read_pixels(tokenizer, Path(name), keep_size=False))
        except DataError as error:
            raise DataError(f"cannot be used: {error}", field=name, fix="give another image file") from error
    start, end = (to_unit_range(each)[0].to(device) for each in pixels)
    decoded = to_uint8(interpolate(tokenizer, start, end, torch.linspace(0, 1, steps)))
    with durable.writing(path):
        side_by_side(decoded).save(path)
    print(f"{steps} images from {first} to {last} in {path}")


def export_to_folder(run: str, out: str, images: str | None) -> None:
    """Write a tokenizer's encoder and decoder as graphs, and print how far each is from the model."""
    from pipeline.image_files import files_below, read_pixels
    from pipeline.interop.graphs import check_images, export_tokenizer

    tokenizer = open_tokenizer(run, "cpu")
    if images is None:
        batch = check_images(tokenizer_folder(Path(run)), tokenizer)
    else:
        found = [read_pixels(tokenizer, path, keep_size=False) for path in files_below([images])[:_CHECKED]]
        batch = to_unit_range(np.concatenate(found))
    for each in export_tokenizer(tokenizer, batch, Path(out)):
        unit = "of the codes differ" if each.file.startswith("encoder") and tokenizer.is_discrete else "at most differ"
        shown = each.checked if each.difference is None else f"{each.difference:.3g} {unit} ({each.checked})"
        print(f"{each.file:14} {shown}")
    if not (Path(out) / "encoder.onnx").exists():
        print("no .onnx: pip install 'tessera-images[onnx]' for it")
    print(f"in {out}, checked on {len(batch)} images")
