"""An export of a few small images, with a log of what is encoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from support.small_tokenizer import Blots

from foundation.codes.dataset import TokenDataset
from foundation.hardware import TokenAccess
from pipeline import work_sharing
from pipeline.encoding.encoder import ShardEncoder
from pipeline.encoding.export import Export
from pipeline.encoding.plan import EncodeConfig
from pipeline.work_sharing import Part

CONFIG = EncodeConfig(batch_size=4, images_per_shard=6, flip=True)
N_TRAIN, N_HELD_OUT = 21, 5
N_SHARDS = 5
LOG = "encoded.log"
ALONE = Part()


def export(
    tokenizer: Path,
    folder: Path,
    part: Part = ALONE,
    done: Callable[[], None] = lambda: None,
) -> bool:
    """Take part in the export of 26 images into ``folder/codes``; every file that is begun is logged in ``folder``.

    ``done`` is called before each file is published.
    """
    work_sharing.POLL_SECONDS = 0.02
    folder.mkdir(exist_ok=True)
    sources = {"train": Blots(N_TRAIN), "validation": Blots(N_HELD_OUT)}
    one = Export(tokenizer, sources, folder / "codes", CONFIG, torch.device("cpu"))
    real: Callable = ShardEncoder.encode

    def encode(planned, progress):
        note(folder, f"{planned.name} {int(one.is_written(planned))} {os.getpid()}")
        shard = real(one.encoder, planned, progress)
        done()
        return shard

    one.encoder.encode = encode  # type: ignore[method-assign]
    try:
        return one.take_part(part, quiet=True)
    finally:
        one.close()


def note(folder: Path, line: str) -> None:
    """Append a line in one system call, which several processes may do at once."""
    descriptor = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def encodings(folder: Path) -> list[tuple[str, bool]]:
    """(file, whether it was finished already) of every file that was begun."""
    path = folder / LOG
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(name, finished == "1") for name, finished, _ in rows]


def open_splits(folder: Path) -> dict[str, TokenDataset]:
    """Both splits, with everything verified; a TesseraError while it is not finished."""
    access = TokenAccess(form="memory")
    return {split: TokenDataset(folder / "codes", split, access) for split in ("train", "validation")}
