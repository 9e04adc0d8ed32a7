"""What the commands of ``cli.py`` that need a tokenizer alone do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from foundation import durable
from foundation.config import from_dict
from foundation.errors import ConfigError, DataError
from foundation.image_set import Augment, open_image_sets
from foundation.images import to_uint8, to_unit_range
from pipeline.evaluation.extractors import ExtractorConfig
from pipeline.outputs import file_name, output_folder, usable_device
from pipeline.run_folder import RunFolder
from stage1_tokenizer.tokenizer import TokenizerModel


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
    from pipeline.reconstruct import reconstruct_files

    tokenizer = open_tokenizer(run, device)
    folder = output_folder(out, run)
    done, failed = reconstruct_files(tokenizer, images, keep_size=keep_size)
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
    from pipeline.reconstruct import read_pixels, side_by_side
    from stage1_tokenizer.interpolate import interpolate

    if steps < 2:
        raise DataError("is too few", field="--steps", found=steps, expected="2 or more: both ends count")
    tokenizer = open_tokenizer(run, device)
    for each in (first, last):
        if not Path(each).is_file():
            raise DataError("no such file", field="images", found=each, fix="give two image files")
    pixels = [read_pixels(tokenizer, Path(each), keep_size=False) for each in (first, last)]
    start, end = (to_unit_range(each)[0].to(device) for each in pixels)
    decoded = to_uint8(interpolate(tokenizer, start, end, torch.linspace(0, 1, steps)))
    path = Path(out)
    with durable.writing(path):
        side_by_side(decoded).save(path)
    print(f"{steps} images from {first} to {last} in {path}")


def evaluate_run(run: str, *, extractor: str, weights: str | None, lpips: str | None, split: str, device: str) -> None:
    """Score the run's tokenizer on its own images; a table, and ``evaluation/tokenizer-SPLIT.json`` in the run."""
    from pipeline.evaluation.extractors import build_extractor
    from pipeline.evaluation.tokenizer import evaluate_tokenizer
    from stage1_tokenizer.losses.lpips import LPIPS

    folder = RunFolder(Path(run))
    recipe = folder.load_recipe()
    if split not in ("train", "validation"):
        raise ConfigError("is not one of the choices", field="--split", found=repr(split), fix="train or validation")
    tokenizer = open_tokenizer(run, device)
    features = None
    if extractor != "none":
        choice = {"type": extractor, **({} if weights is None else {"weights": weights})}
        chosen = from_dict(_Extractor, {"extractor": choice}).extractor
        features = build_extractor(chosen).to(device)
    distance = None if lpips is None else LPIPS("" if lpips == "standard" else lpips).to(device)
    train, held_out = open_image_sets(recipe.data, augment=Augment(), seed=recipe.seed)
    images = held_out if split == "validation" else train
    evaluation = evaluate_tokenizer(tokenizer, images, extractor=features, lpips=distance)
    print(evaluation.table())
    path = folder.root / "evaluation" / f"tokenizer-{split}.json"
    path.parent.mkdir(exist_ok=True)
    about = {"metrics": evaluation.metrics(), "notes": evaluation.notes}
    durable.replace_file(path, json.dumps(about, indent=1).encode())
    print(f"also in {path}")


@dataclass(frozen=True, kw_only=True)
class _Extractor:
    extractor: ExtractorConfig
