"""Small runs on folders of made pictures: each picture is known by its number, whatever its file is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.tiny_run import TINY

from pipeline.commands.job import Job
from pipeline.commands.start import start_run

SIDE = 8
STEPS = {"steps": 2, "batch_size": 8, "evaluate_every": 2, "checkpoint_every": 1}
QUICK = {
    **TINY,
    "data.preprocess": {"height": SIDE, "width": SIDE},
    "data.validation_share": 0.25,
    "tokenizer.training.fit": STEPS,
    "prior.training.fit": STEPS,
}


def picture(number: int) -> Image.Image:
    """A picture that no other number gives."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def save_pictures(folder: Path, numbers: range) -> None:
    """Picture i as ``iii.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        picture(i).save(folder / f"{i:03d}.png")


def begin(run: Path, images: Path, **changes: Any) -> Job:
    """A run of the quick recipe on a folder; the caller releases it."""
    overrides = {**QUICK, "data.source": {"type": "folder", "path": str(images)}, **changes}
    return start_run("digits", str(run), overrides=overrides)
