"""Real colour images that come with scikit-learn: crops of its two photographs as a dataset of parquet files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("temple", "flower")
SIZES = {"train": 240, "validation": 80}


def write_photographs(folder: Path, side: int = 48) -> None:
    """Write ``train-...parquet`` and ``validation-...parquet`` with the columns image and label."""
    import datasets
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    whole = load_sample_images().images
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    for split, n in SIZES.items():
        rows: dict[str, list] = {"image": [], "label": []}
        for i in range(n):
            picture = Image.fromarray(_crop(whole[i % 2], side, rng))
            content = io.BytesIO()
            picture.save(content, "PNG")
            rows["image"].append({"bytes": content.getvalue(), "path": f"{split}-{i:03d}.png"})
            rows["label"].append(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def _crop(picture_YXC: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    wide = int(rng.integers(side, 4 * side))
    top, left = (int(rng.integers(0, size - wide)) for size in picture_YXC.shape[:2])
    region = Image.fromarray(picture_YXC[top : top + wide, left : left + wide])
    return np.asarray(region.resize((side, side), Image.Resampling.BOX))
