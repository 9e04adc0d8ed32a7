"""Gallery of edited images for the report: completion, inpainting, variations, other classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foundation.codes.spec import CodeSpec
from foundation.images.preprocess import image_grid, to_unit_range
from foundation.images.preview import Preview
from foundation.randomness import derive_seed
from foundation.storage import durable
from foundation.storage.serialization import read_json
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.inputs import below_rows, kept_pixels, pixel_mask
from pipeline.runs.folder import RunFolder
from stage1_tokenizer.canary import load_canary

_N_IMAGES, _N_RESULTS, _MOST_CLASSES = 6, 3, 10
_SHARES = (0.125, 0.25, 0.5)
_CAPTIONS = "captions.json"
Picture = tuple[Image.Image, str]
"""a picture and its caption"""


def draw_run_gallery(folder: RunFolder, seed: int, device: torch.device) -> None:
    """``draw_gallery`` of a finished run's canary images, unless it is there or the run has none."""
    canary = load_canary(folder.tokenizer)
    if folder.gallery.exists() or canary is None:
        return
    generator = ImageGenerator.from_pretrained(folder.root).to(device)
    draw_gallery(generator, canary.pixels_BYXC, folder.gallery, seed=seed)


def draw_gallery(generator: ImageGenerator, pixels_BYXC: np.ndarray, folder: Path, *, seed: int) -> None:
    """Publish a folder of pictures; inpainting and variations are left out for a prior without a null class.

    Args:
        generator: of the run.
        pixels_BYXC: uint8 images that were held out; the first six are used.
        folder: to make.
        seed: of the run.
    """
    pixels = pixels_BYXC[:_N_IMAGES]
    images, first = to_unit_range(pixels), derive_seed(seed, "uses") % 2**31
    knows_nothing = generator.label_dropout != 0 or not generator.labels
    drawn: dict[str, Picture] = {}
    if _spec_of(generator, pixels).levels[-1].height > 1:
        drawn["completion"] = _completion(generator, pixels, images, first)
    if knows_nothing:
        drawn["inpainting"] = _inpainting(generator, pixels, images, first)
        if generator.prior.config.order in ("any", "masked"):
            drawn["outpainting"] = _outpainting(generator, pixels, images, first)
        drawn["variations"] = _variations(generator, pixels, images, first)
    if len(generator.labels) > 1:
        drawn["classes"] = _classes(generator, pixels, images, first)

    def fill(temporary: Path) -> None:
        for name, (image, _) in drawn.items():
            image.save(temporary / f"{name}.png")
        captions = {name: caption for name, (_, caption) in drawn.items()}
        durable.write_bytes(temporary / _CAPTIONS, json.dumps(captions).encode())

    durable.publish_folder(folder, fill)


def gallery_pictures(folder: Path) -> list[tuple[Image.Image, str]]:
    """The pictures and their captions; none where there is no gallery.

    Raises:
        CheckpointError: the folder is damaged.
    """
    if not folder.is_dir():
        return []
    captions = read_json(folder / _CAPTIONS, (), fix="move that folder away and run tessera run again")
    return [(Image.open(folder / f"{name}.png"), text) for name, text in captions.items()]


def _completion(generator: ImageGenerator, pixels: np.ndarray, images: torch.Tensor, seed: int) -> Picture:
    options: Any = {"seed": seed, "output_type": "pt", "guess_class": bool(generator.labels)}
    output = generator.complete(images, rows=0.5, num_images=_N_RESULTS, **options)
    kept = kept_pixels(pixels, below_rows(0.5, _spec_of(generator, pixels)).numpy())
    guessed = ", of the class that it makes the likeliest" if generator.labels else ""
    caption = f"Validation images; the half that is given, which alone is encoded; three completions{guessed}."
    return _rows(generator.tokenizer.preview, pixels, kept, output.images), caption


def _inpainting(generator: ImageGenerator, pixels: np.ndarray, images: torch.Tensor, seed: int) -> Picture:
    spec = _spec_of(generator, pixels)
    level = spec.levels[-1]
    mask_HW = torch.zeros(level.height, level.width, dtype=torch.bool)
    mask_HW[level.height // 4 : -(-level.height * 3 // 4), level.width // 4 : -(-level.width * 3 // 4)] = True
    output = generator.inpaint(images, mask_HW, num_images=_N_RESULTS, seed=seed, best_of=4, output_type="pt")
    kept = kept_pixels(pixels, pixel_mask(mask_HW, spec).numpy())
    caption = "Validation images; what is kept of them; three samples of the middle, each the best of four."
    return _rows(generator.tokenizer.preview, pixels, kept, output.images), caption


def _outpainting(generator: ImageGenerator, pixels: np.ndarray, images: torch.Tensor, seed: int) -> Picture:
    spec = _spec_of(generator, pixels)
    level = spec.levels[-1]
    mask_HW = torch.zeros(level.height, level.width, dtype=torch.bool)
    mask_HW[: level.height // 2] = True
    output = generator.inpaint(images, mask_HW, num_images=_N_RESULTS, seed=seed, output_type="pt")
    kept = kept_pixels(pixels, pixel_mask(mask_HW, spec).numpy())
    caption = "Validation images; the lower half, which is given; three samples of the upper half."
    return _rows(generator.tokenizer.preview, pixels, kept, output.images), caption


def _variations(generator: ImageGenerator, pixels: np.ndarray, images: torch.Tensor, seed: int) -> Picture:
    varied = [generator.vary(images, share, num_images=2, seed=seed, output_type="pt").images for share in _SHARES]
    each_BRCYX = torch.cat([part.unflatten(0, (len(pixels), 2)) for part in varied], 1)
    shares = ", ".join(f"{share:.1%}" for share in _SHARES)
    rows = _rows(generator.tokenizer.preview, pixels, None, each_BRCYX.flatten(0, 1))
    return rows, f"Validation images; two samples of {shares} of their codes."


def _classes(generator: ImageGenerator, pixels: np.ndarray, images: torch.Tensor, seed: int) -> Picture:
    names = list(generator.labels)
    shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), _MOST_CLASSES)).round().astype(int))
    classes = [names[i] for i in shown]
    changed = [generator.change_class(images, name, share=0.75, seed=seed, output_type="pt").images for name in classes]
    each_BRCYX = torch.stack(changed, 1)
    caption = (
        f"Validation images; the 75% of their codes that fit another class worst, sampled again: {', '.join(classes)}."
    )
    return _rows(generator.tokenizer.preview, pixels, None, each_BRCYX.flatten(0, 1)), caption


def _spec_of(generator: ImageGenerator, pixels_BYXC: np.ndarray) -> CodeSpec:
    """What the codes of images of this shape are."""
    return generator.spec.of_grid(generator.shapes.index(pixels_BYXC.shape[1:3]))


def _rows(
    preview: Preview, pixels_BYXC: np.ndarray, kept_BYXC: np.ndarray | None, results: torch.Tensor
) -> Image.Image:
    """A row for each image: itself, what is kept, its results, which are (B * R, C, Y, X)."""
    given = [preview(each)[:, None] for each in (pixels_BYXC, kept_BYXC) if each is not None]
    shape = given[0].shape[2:]
    results_BRYXC = preview.of_images(results).reshape(len(pixels_BYXC), -1, *shape)
    rows_BRYXC = np.concatenate([*given, results_BRYXC], 1)
    scale = max(1, 48 // max(pixels_BYXC.shape[1:3]))
    return image_grid(rows_BRYXC.reshape(-1, *shape), rows_BRYXC.shape[1], scale=scale)
