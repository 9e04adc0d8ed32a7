"""Completion test of a ``digits`` run: validation digits completed from their upper half.

python scripts/judge_completion.py runs/digits

The lower half is hidden before encoding. An SVC of the real training digits reads the completed images, the given codes
followed by random ones, and images sampled without the half. Exits with 1 unless completion is clearly above both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC

from foundation.images.image_set import ImageSet
from pipeline.generation.generator import ImageGenerator
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split

CLEARLY = 0.1
COMPLETIONS = 5


def judge(run: Path) -> dict[str, float]:
    generator = ImageGenerator.from_pretrained(run)
    folder = RunFolder(run)
    train, validation = (open_run_split(folder, folder.load_recipe(), split)[0] for split in ("train", "validation"))
    reader = _reader(train)
    truth = np.array(validation.labels)
    images = validation.images(np.arange(len(validation)))
    options: Any = {"rows": 0.5, "num_images": COMPLETIONS, "seed": 0}

    def rate(pixels: np.ndarray, classes: np.ndarray) -> float:
        return float(reader.score(pixels.reshape(len(pixels), -1), classes))

    guessed = generator.complete(images, guess_class=True, output_type="np", **options)
    unlabelled = generator.complete(images, output_type="np", **options)
    known = generator.complete(images, truth.tolist(), output_type="np", **options)
    free = generator(None, len(truth), seed=0, output_type="np")
    read = reader.predict(free.images.reshape(len(truth), -1))
    repeated = truth.repeat(COMPLETIONS)
    return {
        "completed, of the class guessed from the half": rate(guessed.images, repeated),
        "completed without a class": rate(unlabelled.images, repeated),
        "completed, given the true class": rate(known.images, repeated),
        "the half with random codes below": rate(_random_below(generator, guessed.codes), repeated),
        "sampled without the half and a class": rate(free.images, truth),
        "always the most frequent reading of such images": float(np.mean(truth == np.bincount(read).argmax())),
        "real validation digits": rate(validation.pixels(np.arange(len(validation))) / 255, truth),
        "the upper half read by an SVC trained on upper halves": _half_rate(train, validation),
    }


def _reader(train: ImageSet, rows: int | None = None) -> SVC:
    pixels = train.pixels(np.arange(len(train)))[:, :rows] / 255
    return SVC(gamma="scale", C=10.0).fit(pixels.reshape(len(pixels), -1), train.labels)


def _half_rate(train: ImageSet, validation: ImageSet) -> float:
    half = validation.preprocess.height // 2
    pixels = validation.pixels(np.arange(len(validation)))[:, :half] / 255
    return float(_reader(train, half).score(pixels.reshape(len(pixels), -1), validation.labels))


def _random_below(generator: ImageGenerator, codes_BHW: torch.Tensor) -> np.ndarray:
    level = generator.spec.levels[0]
    random = torch.Generator().manual_seed(0)
    codes = codes_BHW.clone()
    below = codes[:, level.height // 2 :]
    below.copy_(torch.randint(0, level.codebook_size, below.shape, generator=random))
    return (generator.decode(codes, 256).permute(0, 2, 3, 1).numpy() + 1) / 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the digits recipe")
    parser.add_argument("--json", type=Path, help="also write the rates to this file")
    arguments = parser.parse_args()
    rates = judge(arguments.run)
    for name, value in rates.items():
        print(f"{value:7.1%}  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rates, indent=1))
    ours, *_, floor, free, constant = list(rates.values())[:6]
    holds = ours >= max(floor, free, constant) + CLEARLY
    print(f"{'ok' if holds else 'SHORT'}: completion above a random fill by {ours - floor:+.1%} (>= {CLEARLY:.0%})")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
