"""Held-out pictures, their reconstructions and new pictures of a run on one image, such as the one in README.md.

python scripts/front_picture.py runs/icons -o docs/icons.png
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))

from foundation.images.preprocess import image_grid, to_unit_range
from pipeline import ImageGenerator
from pipeline.runs.folder import RunFolder
from stage1_tokenizer.canary import load_canary

_COLUMNS, _ROWS = 12, 5
_INK, _LINE = (40, 40, 48), 26


def bands(run: Path, seed: int, scale: int) -> list[tuple[str, Image.Image]]:
    """Captions and strips of pictures.

    Args:
        run: a finished run.
        seed: of the new pictures.
        scale: pixels of the image for one of a picture.
    """
    canary = load_canary(RunFolder(run).tokenizer)
    if canary is None:
        raise SystemExit(f"error: {run} has no held-out pictures; it needs a tokenizer trained there")
    generator = ImageGenerator.from_pretrained(run)
    originals = canary.pixels_BYXC[:_COLUMNS]
    tokenizer = generator.tokenizer
    kept = tokenizer.preview.of_images(tokenizer.decode(tokenizer.encode(to_unit_range(originals))))
    n_new = _COLUMNS * _ROWS
    classes = list(itertools.islice(itertools.cycle(generator.labels), n_new)) if generator.labels else None
    new = generator(classes, num_images_per_label=1 if classes else n_new, seed=seed).images
    strips = [originals, kept, np.stack([np.asarray(each) for each in new])]
    words = f"the same, decoded from {generator.spec.n_codes} codes each"
    captions = ["held-out pictures", words, "new pictures, sampled code by code"]
    return [(words, image_grid(each, _COLUMNS, scale=scale)) for words, each in zip(captions, strips, strict=True)]


def stacked(strips: list[tuple[str, Image.Image]]) -> Image.Image:
    """The strips below each other, each under its caption."""
    margin, font = 12, ImageFont.load_default(size=15)
    height = sum(each.height + _LINE + margin for _, each in strips) + margin
    page = Image.new("RGB", (strips[0][1].width + 2 * margin, height), "white")
    pen, top = ImageDraw.Draw(page), margin
    for words, each in strips:
        pen.text((margin, top), words, fill=_INK, font=font)
        page.paste(each, (margin, top + _LINE))
        top += each.height + _LINE + margin
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the picture, .png")
    parser.add_argument("--seed", type=int, default=0, help="of the new pictures")
    parser.add_argument("--scale", type=int, default=2, help="pixels for one of a picture")
    options = parser.parse_args()
    stacked(bands(options.run, options.seed, options.scale)).save(options.out, optimize=True)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
