"""The dataset card: its text, its picture, and how firm the codes are, from images spread over the training split."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foundation.codes.shards import read_shard
from foundation.images.preprocess import image_grid, to_uint8, to_unit_range
from foundation.images.sources import ImageSource
from foundation.storage import durable
from pipeline.dataset_card import PICTURE, dataset_card
from pipeline.encoding.plan import ExportPlan
from pipeline.encoding.precision import full_precision
from pipeline.encoding.shard_encoder import near_tie_share
from stage1_tokenizer.tokenizer import TokenizerModel

N_SHOWN, N_TIED = 8, 64
_SMALLEST = 64  # pixels of a side in the picture


def publish_card(
    folder: Path,
    tokenizer: TokenizerModel,
    sources: Mapping[str, ImageSource],
    plan: ExportPlan,
    manifest: Mapping[str, Any],
) -> None:
    """Write ``README.md`` and its picture into a dataset whose files are all there.

    Raises:
        StorageError: the disk refused.
    """
    split = next(iter(plan.splits))
    pixels_BYXC, numbers = _sample(sources[split], tokenizer, N_TIED)
    ties = None
    if numbers:
        device = next(tokenizer.parameters()).device
        batches = to_unit_range(pixels_BYXC).to(device).split(plan.batch_size)
        ties = sum(near_tie_share(tokenizer, each) * len(each) for each in batches) / len(pixels_BYXC)
        shown = np.unique(np.linspace(0, len(numbers) - 1, N_SHOWN).round().astype(int)).tolist()
        codes = _stored_codes(folder, plan, split, [numbers[i] for i in shown])
        shown = [i for i in shown if numbers[i] in codes]
        if shown:
            stored_BT = np.array([codes[numbers[i]] for i in shown], np.int64)
            durable.replace_file(folder / PICTURE, _picture(tokenizer, pixels_BYXC[shown], stored_BT))
    durable.replace_file(folder / "README.md", dataset_card(plan.spec, manifest, near_ties=ties).encode())


def _sample(source: ImageSource, tokenizer: TokenizerModel, most: int) -> tuple[np.ndarray, list[int]]:
    """Up to so many images evenly spread over a source, (B, Y, X, C) uint8, and their numbers; bad ones left out."""
    pixels, numbers = [], []
    for number in np.unique(np.linspace(0, len(source.ids) - 1, most).round().astype(int)).tolist():
        try:
            pixels.append(tokenizer.preprocess(source.read(number)))
        except Exception:  # it is among the failures, with its reason
            continue
        numbers.append(number)
    return np.array(pixels, np.uint8), numbers


def _stored_codes(folder: Path, plan: ExportPlan, split: str, numbers: list[int]) -> dict[int, np.ndarray]:
    """(T,) codes of the first view of some images, from the files; those that failed have none."""
    found: dict[int, np.ndarray] = {}
    for planned in plan.shards:
        here = [n for n in numbers if planned.split == split and planned.start <= n < planned.stop]
        if here:
            shard = read_shard(planned.path(folder), plan.spec)
            row_of = {image_id: row for row, image_id in reversed(list(enumerate(shard.image_ids)))}
            ids = {n: plan.splits[split].image_ids[n] for n in here}
            found.update({n: shard.codes_BT[row_of[name]] for n, name in ids.items() if name in row_of})
    return found


@torch.no_grad()
def _picture(tokenizer: TokenizerModel, pixels_BYXC: np.ndarray, codes_BT: np.ndarray) -> bytes:
    """A PNG file: a column for each image, above it as it is, below it as its stored codes decode."""
    device = next(tokenizer.parameters()).device
    grids = tokenizer.layout.grid(torch.from_numpy(codes_BT)).to(device)
    with full_precision(device):
        decoded_BYXC = to_uint8(tokenizer.decode(grids))
    scale = max(1, _SMALLEST // max(pixels_BYXC.shape[1:3]))
    grid: Image.Image = image_grid(np.concatenate([pixels_BYXC, decoded_BYXC]), len(pixels_BYXC), scale=scale)
    content = io.BytesIO()
    grid.save(content, "PNG")
    return content.getvalue()
