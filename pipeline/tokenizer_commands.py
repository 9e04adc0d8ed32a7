"""What the commands of ``cli.py`` that need a tokenizer alone do."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from foundation import durable
from foundation.config import from_dict
from foundation.errors import ConfigError, DataError, nearest
from foundation.image_set import Augment, open_image_sets
from foundation.images import to_uint8, to_unit_range
from pipeline.evaluation.extractors import (
    DinoV2Config,
    ExtractorConfig,
    FeatureExtractor,
    InceptionConfig,
    SmallConfig,
    build_extractor,
)
from pipeline.outputs import file_name, output_folder, usable_device
from pipeline.run_folder import RunFolder
from stage1_tokenizer.tokenizer import TokenizerModel

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


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
    from pipeline.reconstruct import files_below, reconstruct_files

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
    from pipeline.reconstruct import read_pixels, side_by_side
    from stage1_tokenizer.interpolate import interpolate

    if steps < 2:
        raise ConfigError("is too few", field="--steps", found=steps, expected="2 or more: both ends count")
    path = Path(out)
    if path.suffix.lower() not in _PICTURES or path.is_dir():
        raise ConfigError("is not a name for a picture", field="--out", found=repr(out),
                          expected=f"a file name that ends in one of {', '.join(_PICTURES)}")  # fmt: skip
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


def evaluate_run(run: str, *, extractor: str, weights: str | None, lpips: str | None, split: str, device: str) -> None:
    """Score the run's tokenizer on its own images; a table, also as ``evaluation/tokenizer-SPLIT-EXTRACTOR.json``."""
    from pipeline.evaluation.tokenizer import evaluate_tokenizer
    from stage1_tokenizer.losses.lpips import LPIPS

    folder = RunFolder(Path(run))
    recipe = folder.load_recipe()
    if split not in ("train", "validation"):
        raise ConfigError("is not one of the choices", field="--split", found=repr(split), fix="train or validation")
    tokenizer = open_tokenizer(run, device)
    features = _extractor(extractor, weights)
    distance = None if lpips is None else LPIPS("" if lpips == "standard" else lpips).to(device)
    train, held_out = open_image_sets(recipe.data, augment=Augment(), seed=recipe.seed)
    images = held_out if split == "validation" else train
    evaluation = evaluate_tokenizer(
        tokenizer, images, extractor=None if features is None else features.to(device), lpips=distance
    )
    print(evaluation.table())
    path = folder.root / "evaluation" / f"tokenizer-{split}-{extractor}.json"
    path.parent.mkdir(exist_ok=True)
    about = {"metrics": evaluation.metrics(), "notes": evaluation.notes}
    durable.replace_file(path, json.dumps(about, indent=1).encode())
    print(f"also in {path}")


def _extractor(name: str, weights: str | None) -> FeatureExtractor | None:
    """The extractor of that name; None for ``none``.

    Raises:
        ConfigError: no such extractor, or weights for one that takes none.
        CheckpointError: its weights are not to be had.
    """
    configs: dict[str, type[ExtractorConfig]] = {
        each.type_name: each for each in (InceptionConfig, DinoV2Config, SmallConfig)
    }
    choices = [*configs, "none"]
    if name not in choices:
        raise ConfigError("is not one of the choices", field="--extractor", found=repr(name),
                          fix=nearest(name, choices))  # fmt: skip
    if weights is not None and name in ("none", "small"):
        raise ConfigError("is of no use with this extractor", field="--weights", found=weights,
                          expected=f"nothing with --extractor {name}", fix="leave it out")  # fmt: skip
    if name == "none":
        return None
    return build_extractor(from_dict(configs[name], {} if weights is None else {"weights": weights}, "--extractor"))
