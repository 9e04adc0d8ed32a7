"""Export: every image through the frozen tokenizer into a token dataset, resumable shard by shard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from foundation import durable
from foundation.codes import CodeSpec
from foundation.config import to_dict
from foundation.errors import ContractError
from foundation.image_set import ImageSet
from foundation.images import to_unit_range
from foundation.token_dataset import MANIFEST, Shard, read_manifest, read_shard, shard_path, write_manifest, write_shard
from pipeline.dataset_card import dataset_card
from pipeline.recipe import EncodeConfig
from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.tokenizer import TokenizerModel


@dataclass(frozen=True)
class _ShardPlan:
    """One parquet file: rows ``start..stop`` of a split, in each of ``views``."""

    split: str
    index: int
    start: int
    stop: int
    views: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return (self.stop - self.start) * len(self.views)


def encode_dataset(
    tokenizer_folder: Path, splits: dict[str, ImageSet], folder: Path, config: EncodeConfig, device: torch.device
) -> CodeSpec:
    """Write the token dataset of some images; what is already there and sound is kept.

    Args:
        tokenizer_folder: the frozen tokenizer; a copy goes into the dataset, which then decodes by itself.
        splits: images of each split.
        folder: the dataset.
        config: batch and shard sizes, views.
        device: where to encode.

    Returns:
        The specification of the codes, with the images' class names.

    Raises:
        ContractError: the images are preprocessed otherwise than the tokenizer expects, or it is not what it was when
            it was frozen.
        StorageError: the disk refused; finished shards stay.
    """
    tokenizer = TokenizerModel.load(tokenizer_folder).to(device)
    check_canary(tokenizer, tokenizer_folder)
    class_names = next(iter(splits.values())).class_names
    for name, images in splits.items():
        if images.preprocess != tokenizer.preprocess:
            raise ContractError("images are not preprocessed as the tokenizer expects", field=f"split {name}",
                                found=images.preprocess, expected=tokenizer.preprocess)  # fmt: skip
    spec = tokenizer.spec.with_classes(class_names)
    plans = list(_plan(splits, config))
    _require_no_others(folder, plans)
    total = sum(plan.rows for plan in plans)
    missing = sum(plan.rows for plan in plans if not shard_path(folder, plan.split, plan.index).exists())
    size = missing * spec.n_codes * 4 + folder_bytes(tokenizer_folder)
    durable.require_free_space(folder, size, "the token dataset")
    with tqdm(total=total, desc="encoding", unit="img", delay=2) as progress:
        for plan in plans:
            path = shard_path(folder, plan.split, plan.index)
            if path.exists():
                _require_planned(path, read_shard(path, spec), splits[plan.split], plan)
            else:
                durable.sweep(path.parent)
                write_shard(path, _encode_shard(tokenizer, splits[plan.split], plan, config.batch_size, spec), spec)
            progress.update(plan.rows)
    if not (folder / "tokenizer").exists():
        durable.publish_folder(folder / "tokenizer", lambda temporary: _copy(tokenizer_folder, temporary))
    manifest = write_manifest(folder, spec)
    durable.replace_file(folder / "README.md", dataset_card(spec, manifest).encode())
    return spec


def is_encoded(folder: Path) -> bool:
    """Whether the token dataset is complete: every file that its manifest names is there."""
    if not (folder / MANIFEST).exists() or not (folder / "README.md").exists():
        return False
    splits = read_manifest(folder)["splits"].values()
    return all((folder / each["file"]).exists() for entry in splits for each in entry["files"])


def encode_images(
    tokenizer: TokenizerModel, images: ImageSet, indices: np.ndarray, *, flip: bool, batch_size: int
) -> np.ndarray:
    """Codes of some images, (B, T). The last batch is padded to the shape of all, since results may depend on it."""
    device = next(tokenizer.parameters()).device
    rows = []
    for start in range(0, len(indices), batch_size):
        pixels = images.pixels(indices[start : start + batch_size])
        padded = np.pad(pixels, [(0, batch_size - len(pixels))] + [(0, 0)] * 3)
        codes = tokenizer.encode(to_unit_range(padded[:, :, ::-1] if flip else padded).to(device))
        rows.append(codes.flatten(1)[: len(pixels)].cpu().numpy())
    return np.concatenate(rows)


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _plan(splits: dict[str, ImageSet], config: EncodeConfig) -> Iterator[_ShardPlan]:
    for split, images in splits.items():
        views = (0, 1) if config.flip and split == "train" else (0,)
        for index, start in enumerate(range(0, len(images), config.images_per_shard)):
            yield _ShardPlan(split, index, start, min(start + config.images_per_shard, len(images)), views)


def _require_no_others(folder: Path, plans: list[_ShardPlan]) -> None:
    """Refuse shards that are not part of the plan: they would become rows that nobody asked for."""
    planned = {shard_path(folder, plan.split, plan.index) for plan in plans}
    others = sorted(set((folder / "data").glob("*/*.parquet")) - planned)
    if others:
        raise ContractError(
            "is a shard of other images than are there now",
            field=str(others[0]),
            found=f"{len(others)} such",
            fix="remove the run's codes folder to encode the images that are there now",
        )


def _require_planned(path: Path, shard: Shard, images: ImageSet, plan: _ShardPlan) -> None:
    """Refuse a shard that an earlier run made from other images."""
    planned = images.ids[plan.start : plan.stop] * len(plan.views)
    labels = None if images.labels is None else np.tile(images.labels[plan.start : plan.stop], len(plan.views))
    unlabelled = labels is None and shard.labels is None
    same_labels = unlabelled or (
        labels is not None and shard.labels is not None and np.array_equal(labels, shard.labels)
    )
    if list(shard.image_ids) != planned or not same_labels:
        raise ContractError(
            "the shard holds other images or labels than are there now",
            field=str(path),
            found=f"{len(shard.image_ids)} rows",
            expected=f"{len(planned)} rows, of the images in the data source",
            fix="remove the run's codes folder to encode the images that are there now",
        )


def _encode_shard(
    tokenizer: TokenizerModel, images: ImageSet, plan: _ShardPlan, batch_size: int, spec: CodeSpec
) -> Shard:
    indices = np.arange(plan.start, plan.stop)
    per_view = [
        encode_images(tokenizer, images, indices, flip=bool(view), batch_size=batch_size) for view in plan.views
    ]
    ids = [images.ids[i] for i in indices]
    labels = None if images.labels is None else np.tile(images.labels[indices], len(plan.views))
    return Shard(
        codes_BT=np.concatenate(per_view).reshape(-1, spec.n_codes),
        image_ids=ids * len(plan.views),
        views=np.repeat(np.array(plan.views, np.uint8), len(indices)),
        labels=labels,
        failures=images.failures if plan.index == 0 else (),
    )


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def failures_text(splits: dict[str, ImageSet]) -> str:
    """Every image that could not be used, one JSON object per line."""
    rows = [{"split": name, **to_dict(each)} for name, images in splits.items() for each in images.failures]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
