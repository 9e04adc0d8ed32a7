"""A decoding whose batches are computed by an engine; this process alone writes, the same files as the local engine.

Few folders are open at a time: batches are given out folder by folder, and a folder is written once its last image has
come.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from foundation.images.config import Preprocess
from foundation.images.image_bytes import file_content
from foundation.threads import map_in_threads
from pipeline.encoding.decode import CodeBatch, Decoder, Decoding, ImageFolder
from pipeline.engines.stream import Engine, Movable, Step, Stream
from stage1_tokenizer.tokenizer import TokenizerModel


@dataclass
class _OpenFolder:
    """A folder whose images come in."""

    metadata: bytes
    files: dict[str, bytes] = field(default_factory=dict)


def decode_on(engine: Engine, decoding: Decoding) -> None:
    """Decode and write the folders that are missing.

    Args:
        engine: computes the batches.
        decoding: opened in this process, which writes.

    Raises:
        StorageError, RemoteError: the disk or the store refused; folders that are complete stay.
        TesseraError: the engine cannot go on.
        Interrupted: on SIGTERM or SIGINT.
    """
    missing = [each for each in decoding.folders if not decoding.is_written(each)]
    tokenizer = decoding.decoder.tokenizer
    stream = Stream(
        "decoding",
        functools.partial(_open_decoder, Movable(tokenizer), decoding.decoder.batch_size),
        finish=functools.partial(_open_compression, tokenizer.preprocess),
        device=next(tokenizer.parameters()).device.type,
    )
    given: dict[int, tuple[ImageFolder, CodeBatch]] = {}
    opened: dict[str, _OpenFolder] = {}
    total = sum(each.n_images for each in decoding.folders)
    there = total - sum(each.n_images for each in missing)
    with tqdm(total=total, initial=there, desc="decoding", unit="img", delay=2) as bar:
        for number, contents in engine.results(stream, _batches(decoding, missing, given, opened)):
            folder, batch = given.pop(number)
            found = opened[folder.name]
            found.files |= dict(zip(batch.names, contents, strict=True))
            bar.update(len(contents))
            if len(found.files) == folder.n_images:
                decoding.publish(folder, found.metadata, sorted(found.files.items()))
                del opened[folder.name]


def _batches(
    decoding: Decoding,
    missing: list[ImageFolder],
    given: dict[int, tuple[ImageFolder, CodeBatch]],
    opened: dict[str, _OpenFolder],
) -> Iterator[tuple[int, CodeBatch]]:
    """The batches of some folders, each noted as given out."""
    count = 0
    for folder in missing:
        metadata, batches = decoding.batches(folder)
        opened[folder.name] = _OpenFolder(metadata)
        for batch in batches:
            given[count] = folder, batch
            yield count, batch
            count += 1


def _open_decoder(tokenizer: Movable[TokenizerModel], batch_size: int) -> Step:
    """A ``CodeBatch`` => (B, Y, X, C) pixels."""
    decoder = Decoder(tokenizer.content, batch_size)
    return lambda batch: decoder.decode(batch.codes_BT, batch.grid)


def _open_compression(preprocess: Preprocess) -> Step:
    """(B, Y, X, C) pixels => contents of image files."""

    def compress(images_BYXC: np.ndarray) -> list[bytes]:
        return map_in_threads(lambda image_YXC: file_content(image_YXC, preprocess), images_BYXC)

    return compress
