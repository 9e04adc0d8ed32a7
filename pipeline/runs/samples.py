"""Samples of a run: the grid at its end, and the pictures of evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foundation.codes.spec import CodeSpec
from foundation.errors import CheckpointError
from foundation.randomness import derive_seed
from foundation.storage import durable
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.outputs import code_maps, grid_image, picture_type, pictures_of, stacked
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.tokenizer import TokenizerModel

if TYPE_CHECKING:
    from PIL import Image

_COLUMNS = 8
"""pictures in a row of a preview"""


def write_samples(folder: RunFolder, recipe: Recipe, device: torch.device, *, has_tokenizer: bool) -> None:
    """Sample the grid of a run: a row per class, or a square without classes; one below the other for each shape.

    Args:
        folder, recipe: of the run.
        device: of the generator.
        has_tokenizer: whether codes can be decoded; else they are shown as colours.

    Raises:
        CheckpointError: the folder of samples holds other files.
    """
    if folder.samples.exists():
        fix = "move it away and run the same command again"
        raise CheckpointError("holds other files than the run's samples", field=str(folder.samples), fix=fix)
    generator = ImageGenerator.from_pretrained(folder.root).to(device)
    labels, per_label, n_columns = _layout(recipe, generator.prior.n_classes)
    kind = picture_type(generator.tokenizer.preview) if has_tokenizer else "latent"
    how: dict[str, Any] = {"seed": derive_seed(recipe.seed, "samples") % 2**31, "output_type": kind}
    outputs = [generator(labels, per_label, aspect=grid, **how) for grid in range(len(generator.shapes))]
    several = len(outputs) > 1
    pictures = [
        pictures_of(each.images, generator.tokenizer.preview)
        if has_tokenizer
        else code_maps(each.codes, generator.spec.of_grid(grid))
        for grid, each in enumerate(outputs)
    ]
    picture, bounds = stacked([grid_image(each, n_columns) for each in pictures])
    codes = [each.codes.flatten(1) if several else each.codes for each in outputs]

    def fill(temporary: Path) -> None:
        picture.save(temporary / "grid.png")
        np.save(temporary / "codes.npy", torch.cat(codes).cpu().numpy(), allow_pickle=False)
        about = {"labels": outputs[0].labels, "seeds": outputs[0].seeds, "columns": n_columns}
        shapes = [
            {"shape": shape, "rows": rows} for shape, rows in zip(generator.shapes, bounds, strict=True) if several
        ]
        content = {**about, **({"shapes": shapes} if several else {})}
        durable.write_bytes(temporary / "samples.json", json.dumps(content).encode())

    durable.publish_folder(folder.samples, fill)


def _layout(recipe: Recipe, n_classes: int) -> tuple[list[int] | None, int, int]:
    """Classes that are shown, images of each, and columns of the grid."""
    config = recipe.samples
    if not n_classes:
        return None, config.unconditional_images, max(1, round(config.unconditional_images**0.5))
    shown = np.unique(np.linspace(0, n_classes - 1, min(n_classes, config.max_classes)).round().astype(int))
    return [int(label) for label in shown], config.images_per_class, config.images_per_class


def sampled_picture(codes_BT: torch.Tensor, spec: CodeSpec, tokenizer: TokenizerModel | None) -> Image.Image:
    """Sampled images side by side; codes, a colour each, where their tokenizer is not known."""
    codes = spec.grid(codes_BT)
    if tokenizer is None:
        pictures = code_maps(codes, spec)
    else:  # one by one: a decoder's memory grows with the images that it decodes at once
        decoded = (tokenizer.decode(each[None]) for each in codes)
        pictures = [image for each in decoded for image in pictures_of(each, tokenizer.preview)]
    return grid_image(pictures, min(_COLUMNS, len(pictures)))
