"""An export in a second or two: a few images, several files; plain, or with a log of the files that were begun."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from support.small_tokenizer import Blots

from foundation.images.config import Preprocess
from foundation.images.sources import FolderSource, ImageSource
from foundation.storage.durable import file_sha256
from pipeline import work_sharing
from pipeline.encoding.encoder import ShardEncoder
from pipeline.encoding.export import Export
from pipeline.encoding.plan import EncodeConfig
from pipeline.work_sharing import Part
from stage1_tokenizer.canary import save_canary
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import FSQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

SIDE = 16
CONFIG = EncodeConfig(batch_size=3, images_per_shard=4, flip=True)
ALONE = Part()

N_TRAIN, N_VALIDATION, N_SHARDS = 21, 5, 5
"""of ``logged_export``"""
_LOGGED = EncodeConfig(batch_size=4, images_per_shard=6, flip=True)
_LOG = "encoded.log"


def make_images(folder: Path, n: int = 10, *, seed: int = 0) -> Path:
    """``n`` pictures in each of two classes."""
    rng = np.random.default_rng(seed)
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            coarse = rng.integers(0, 256, (5, 6, 3), np.uint8).repeat(6, 0).repeat(6, 1)
            Image.fromarray(coarse).save(folder / name / f"{i:03d}.png")
    return folder


def make_tokenizer(folder: Path, *, seed: int = 0) -> Path:
    """A frozen tokenizer of 16 x 16 images, 4 x 4 codes of 48, with its canary."""
    torch.manual_seed(seed)
    config = TokenizerConfig(
        networks=VQGANNetworks(base_width=8, width_multipliers=(1, 1, 1), n_res_blocks=1, norm_groups=4),
        latent_channels=8,
        quantizer=FSQConfig(levels=(4, 4, 3)),
    )
    model = TokenizerModel(config, Preprocess(height=SIDE, width=SIDE)).eval()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)
    model.initialize(torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 127.5 - 1).float(), torch.Generator())
    folder.mkdir(parents=True)
    model.save(folder)
    save_canary(model, pixels, folder)
    return folder


def make_inputs(folder: Path, n: int = 10) -> tuple[Path, Path]:
    """Images and tokenizer in one folder, for ``tiny_export``."""
    return make_images(folder / "images", n), make_tokenizer(folder / "tokenizer")


def sources_of(images: Path) -> dict[str, ImageSource]:
    """The same images as training and validation split."""
    return {"train": FolderSource(str(images)), "validation": FolderSource(str(images))}


def open_tiny(images: Path, tokenizer: Path, codes: Path, config: EncodeConfig = CONFIG) -> Export:
    """The export of ``images`` into the dataset ``codes``."""
    return Export(tokenizer, sources_of(images), codes, config, torch.device("cpu"))


def tiny_export(images: Path, tokenizer: Path, codes: Path, config: EncodeConfig = CONFIG, **options: Any) -> bool:
    """Open the export and take part in it; ``options`` are those of ``Export.take_part``."""
    export = open_tiny(images, tokenizer, codes, config)
    return export.take_part(**{"quiet": True, **options})


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path: equal for equal datasets."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def logged_export(
    tokenizer: Path, folder: Path, part: Part = ALONE, before_publishing: Callable[[], None] = lambda: None
) -> bool:
    """Take part in the export of 26 images into ``folder/codes``; every file that is begun is logged in ``folder``.

    Args:
        tokenizer: a frozen one of 16 x 16 images.
        folder: for codes and log.
        part: which files to begin with.
        before_publishing: called before each file is published.
    """
    work_sharing.POLL_SECONDS = 0.02
    folder.mkdir(exist_ok=True)
    sources = {"train": Blots(N_TRAIN), "validation": Blots(N_VALIDATION)}
    export = Export(tokenizer, sources, folder / "codes", _LOGGED, torch.device("cpu"))
    real: Callable = ShardEncoder.encode

    def encode(planned, progress):
        _note(folder, f"{planned.name} {int(export.is_written(planned))} {os.getpid()}")
        shard = real(export.encoder, planned, progress)
        before_publishing()
        return shard

    export.encoder.encode = encode  # type: ignore[method-assign]
    return export.take_part(part, quiet=True)


def _note(folder: Path, line: str) -> None:
    """Append a line in one system call, which several processes may do at once."""
    descriptor = os.open(folder / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def encodings(folder: Path) -> list[tuple[str, bool]]:
    """(file, whether it was finished already) of every file that was begun, from the log."""
    path = folder / _LOG
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(name, finished == "1") for name, finished, _ in rows]
