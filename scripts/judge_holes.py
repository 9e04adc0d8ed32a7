"""Inpainting test of ``digits`` runs: held-out digits with a hole, read by an SVC, without a class.

    python scripts/judge_holes.py runs/digits runs/digits-any [--json FILE] [--picture FILE]

No class is given: a prior of order any or masked guesses it from what is kept. What is under a hole is hidden before
encoding. An SVC of the real training digits reads the inpainted images, and the same ones with random codes under the
hole; "of no class" are images of the null class, without a guess.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.svm import SVC

from foundation.images.image_set import ImageSet
from pipeline.generation.generator import ImageGenerator
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split

HOLES = {
    "upper half": (slice(0, 4), slice(0, 8)),
    "middle rows": (slice(2, 6), slice(0, 8)),
    "middle square": (slice(2, 6), slice(2, 6)),
    "lower half": (slice(4, 8), slice(0, 8)),
}
"""name => rows and columns of pixels"""
RESULTS = 5
SHOWN = 12


def judge(run: Path, picture: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """For each hole, the shares of digits that are read rightly; adds rows of images to ``picture``."""
    generator, folder = ImageGenerator.from_pretrained(run), RunFolder(run)
    train, validation = (open_run_split(folder, folder.load_recipe(), split)[0] for split in ("train", "validation"))
    reader, truth = _reader(train), np.array(validation.labels)
    images = validation.images(np.arange(len(validation)))
    rates = {}
    for name, (rows, columns) in HOLES.items():
        mask = np.zeros((8, 8), bool)
        mask[rows, columns] = True
        options: Any = {"num_images": RESULTS, "seed": 0, "output_type": "np"}
        found = generator.inpaint(images, mask, **options)
        no_class = generator.inpaint(images, mask, guess_class=False, **options)
        repeated = truth.repeat(RESULTS)
        rates[name] = {
            "inpainted": _rate(reader, found.images, repeated),
            "of no class": _rate(reader, no_class.images, repeated),
            "random codes": _rate(reader, _random_under(generator, found.codes, mask), repeated),
        }
        hidden = np.where(mask[:, :, None], 0.5, validation.pixels(np.arange(SHOWN)) / 255)
        picture += [hidden, found.images[::RESULTS][:SHOWN]]
    return rates


def _reader(train: ImageSet) -> SVC:
    pixels = train.pixels(np.arange(len(train))) / 255
    return SVC(gamma="scale", C=10.0).fit(pixels.reshape(len(pixels), -1), train.labels)


def _rate(reader: SVC, images_BYXC: np.ndarray, classes_B: np.ndarray) -> float:
    return float(reader.score(images_BYXC.reshape(len(images_BYXC), -1), classes_B))


def _random_under(generator: ImageGenerator, codes_BHW: torch.Tensor, mask_YX: np.ndarray) -> np.ndarray:
    """The images with random codes under the hole."""
    stride, codes = generator.spec.stride, codes_BHW.clone()
    hole_HW = torch.from_numpy(mask_YX).unflatten(0, (-1, stride)).unflatten(2, (-1, stride)).any(3).any(1)
    seeded = torch.Generator().manual_seed(0)
    random = torch.randint(0, generator.spec.codebook_size, codes.shape, generator=seeded)
    codes = torch.where(hole_HW, random, codes)
    return (generator.decode(codes, 256).permute(0, 2, 3, 1).numpy() + 1) / 2


def _save(picture: list[np.ndarray], path: Path) -> None:
    """Rows of images, eight times as large."""
    rows = [np.concatenate(list(images[..., 0]), 1) for images in picture]
    grey = (np.concatenate(rows).clip(0, 1) * 255).astype(np.uint8)
    Image.fromarray(grey.repeat(8, 0).repeat(8, 1)).save(path)


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of digits recipes")
    parser.add_argument("--json", type=Path, help="also write the rates to this file")
    parser.add_argument("--picture", type=Path, help="also draw the holes and what fills them")
    arguments = parser.parse_args()
    picture: list[np.ndarray] = []
    rates = {run.name: judge(run, picture) for run in arguments.runs}
    print("| run | hole | inpainted | of no class | random codes | gain |\n|---|---|---|---|---|---|")
    for run, holes in rates.items():
        for name, each in holes.items():
            shares = " | ".join(f"{value:.1%}" for value in each.values())
            print(f"| {run} | {name} | {shares} | {100 * (each['inpainted'] - each['random codes']):+.0f} points |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rates, indent=1), encoding="utf-8")
    if arguments.picture:
        _save(picture, arguments.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
