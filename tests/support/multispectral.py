"""Pictures of four channels and 16 bits: red, green, blue and near infrared, as a satellite's reflectance."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tifffile
from PIL import Image, ImageOps

WHITE = 10_000
"""reflectance 1, as in Sentinel-2 products"""


def reflectance(colours_YXC: np.ndarray) -> np.ndarray:
    """(Y, X, 3) uint8 => (Y, X, 4) uint16: linear light, and a near infrared that is bright where green wins."""
    linear = (colours_YXC.astype(np.float64) / 255) ** 2.2
    red, green, blue = np.moveaxis(linear, -1, 0)
    infrared = np.clip(0.5 * green + 1.5 * np.clip(green - red, 0, 1) + 0.3 * (1 - blue) * red, 0, 1)
    return np.rint(np.stack([red, green, blue, infrared], -1) * WHITE).astype(np.uint16)


def hill(seed: int, side: int = 16) -> np.ndarray:
    """(side, side, 4) uint16: a coloured hill."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    (cy, cx), colour = rng.uniform(0.2, 0.8, 2), rng.uniform(-110, 110, 3)
    near = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.08)[..., None]
    return reflectance((128 + near * colour).clip(0, 255).astype(np.uint8))


def write_photographs(shard: Path, folder: Path, side: int = 64) -> int:
    """Write the photographs of a parquet file as TIFF files of four 16-bit channels; returns their number."""
    folder.mkdir(parents=True)
    rows = pq.read_table(shard, columns=["image"]).column("image").to_pylist()
    for i, row in enumerate(rows):
        image = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
        pixels = reflectance(np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)))
        options = {"planarconfig": "contig", "photometric": "minisblack", "compression": "zlib"}
        tifffile.imwrite(folder / f"{i:04d}.tif", pixels, **options)
    return len(rows)
