"""Bulk decoding: an image file for every row of codes, from a token dataset or codes of one's own.

Images come in folders of 1,000, each published whole, with a ``metadata.jsonl`` of image id, view and class;
``datasets.load_dataset("imagefolder", data_dir=...)`` opens the result. Any number of processes may work on it at the
same time; a finished folder is never decoded again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.codes.fetched import local_codes
from foundation.codes.sources import CodeRows
from foundation.codes.spec import CodeSpec
from foundation.config import require
from foundation.errors import ConfigError, Interrupted, StorageError
from foundation.hardware import usable_device
from foundation.images.buckets import grouped
from foundation.images.image_bytes import file_content, file_ending
from foundation.images.preprocess import to_pixels
from foundation.storage import durable
from foundation.storage.places import LocalPlace, Place
from foundation.threads import map_in_threads
from foundation.training.arithmetic import arithmetic
from foundation.training.stop_signal import StopSignal
from pipeline.encoding.decode_inputs import find_tokenizer, open_rows
from pipeline.output_files import output_place
from pipeline.work_sharing import Part, SharedWork, claim_place, leases_of
from stage1_tokenizer.canary import load_checked
from stage1_tokenizer.tokenizer import TokenizerModel

PLAN = "decode.json"
LEASES = ".leases"
METADATA = "metadata.jsonl"
IMAGES_PER_FOLDER = 1000
_BLOCK = 8192


@dataclass(frozen=True)
class ImageFolder:
    """Rows ``start..stop`` of some codes, as the images of one folder.

    Attributes:
        rows: the codes of a split.
        index: of the folder in its split.
        start, stop: its rows.
    """

    rows: CodeRows
    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Different for each folder."""
        return f"{self.rows.split or 'codes'}-{self.index:05d}"

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.stop - self.start

    @property
    def place(self) -> str:
        """Name of the folder in the output."""
        return f"{self.rows.split}/{self.index:05d}".removeprefix("/")


@dataclass(frozen=True)
class CodeBatch:
    """Codes that are decoded together.

    Attributes:
        names: of the image files.
        codes_BT: of images of one shape.
        grid: their shape, an index into ``CodeSpec.grids``.
    """

    names: tuple[str, ...]
    codes_BT: np.ndarray
    grid: int


def decode_to_folder(
    codes: str,
    out: str,
    *,
    tokenizer: str | None = None,
    split: str | None = None,
    part: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    before: Callable[[Decoding], None] = lambda decoding: None,
) -> int:
    """Decode every row of ``codes`` into ``out``, a folder or an address; see ``tessera decode``.

    Args:
        codes, out, tokenizer, split, part, batch_size, device: of the command.
        before: called before this process decodes what is missing then: an engine's work.

    Returns:
        Images in the folder now.

    Raises:
        DataError, ContractError, ConfigError, CheckpointError: codes and tokenizer that cannot be used together.
        StorageError: the disk refused.
        RemoteError: a store refused.
        Interrupted: SIGTERM or SIGINT came; what is complete stays.
    """
    mine = Part() if part is None else Part.parse(part, "--part")
    decoding = open_decoding(codes, out, tokenizer=tokenizer, split=split, batch_size=batch_size, device=device)
    before(decoding)
    waiting = decoding.take_part(mine, wait=part is None)
    return decoding.say_done(len(waiting))


def open_decoding(
    codes: str, out: str, *, tokenizer: str | None, split: str | None, batch_size: int, device: str
) -> Decoding:
    """Open codes, their tokenizer and the folder of the images, which must be new or of the same codes.

    Raises:
        see ``decode_to_folder``.
    """
    require(batch_size > 0, "--batch-size", batch_size, "a positive whole number")
    target, source = output_place(out), local_codes(codes)
    ConfigError.unless(target.folder.resolve() != source.resolve(), "is a place of the codes", field="--out", found=out)
    model = load_checked(find_tokenizer(source, tokenizer), torch.device(usable_device(device)))
    several = open_rows(source, model.spec, split)
    decoding = Decoding(target, several, Decoder(model, batch_size))
    there = decoding.found()
    if there and not target.exists(PLAN):  # in this order: another process may have begun in between
        found, fix = f"{len(there)} such, e.g. {target.shown}/{there[0]}", "move them away, or choose another folder"
        raise ConfigError("holds folders of something else", field="--out", found=found, fix=fix)
    claim_place(target, PLAN, _plan(several, model, batch_size))
    return decoding


class Decoding:
    """The decoding of some codes, as one process sees it.

    Args:
        out: the place of the images.
        several: the codes, a split each.
        decoder: of their tokenizer.

    Attributes:
        folders: of the images, in order.
    """

    def __init__(self, out: Place, several: list[CodeRows], decoder: Decoder) -> None:
        self.out, self.decoder = out, decoder
        self.folders = [
            ImageFolder(rows, index, start, min(start + IMAGES_PER_FOLDER, rows.n_rows))
            for rows in several
            for index, start in enumerate(range(0, rows.n_rows, IMAGES_PER_FOLDER))
        ]

    def is_written(self, folder: ImageFolder) -> bool:
        """Whether a folder exists; folders are published whole."""
        return self.out.has_folder(folder.place, METADATA)

    def found(self) -> list[str]:
        """Names of what is there already, where there may be images; of a store, of all that is there."""
        if isinstance(self.out, LocalPlace):
            return [each.place for each in self.folders if self.is_written(each)]
        return [] if self.out.exists(PLAN) else self.out.names()

    def batches(self, folder: ImageFolder) -> tuple[bytes, list[CodeBatch]]:
        """What is decoded for a folder: its ``metadata.jsonl``, and the codes in batches."""
        tokenizer = self.decoder.tokenizer
        codes_NT, about, grids = _read(folder.rows, folder.start, folder.stop, tokenizer.layout)
        names = [f"{row:08d}{file_ending(tokenizer.preprocess)}" for row in range(folder.start, folder.stop)]
        lines = (json.dumps({"file_name": name, **each}) for name, each in zip(names, about, strict=True))
        found = []
        for grid, rows in grouped(grids):
            for start in range(0, len(rows), self.decoder.batch_size):
                batch = rows[start : start + self.decoder.batch_size]
                found.append(CodeBatch(tuple(names[row] for row in batch.tolist()), codes_NT[batch], grid))
        return "".join(f"{line}\n" for line in lines).encode(), found

    def write(self, folder: ImageFolder, done: Callable[[int], None] = lambda n: None) -> None:
        """Decode and publish one folder. Another process may do so too: the first one wins."""
        metadata, batches = self.batches(folder)
        self.publish(folder, metadata, self._files(batches, done))

    def publish(self, folder: ImageFolder, metadata: bytes, files: Iterable[tuple[str, bytes]]) -> None:
        """Publish the images of a folder, decoded here or on another machine, all or nothing.

        Args:
            folder: the folder.
            metadata: see ``batches``.
            files: name and content of every image file.

        Raises:
            StorageError: the disk refused.
            RemoteError: the store refused.
        """
        self.out.sweep(folder.rows.split)

        def fill(temporary: Path) -> None:
            durable.write_bytes(temporary / METADATA, metadata)
            for name, content in files:
                _save(content, temporary / name)

        try:
            self.out.publish_folder(folder.place, fill, METADATA)
        except StorageError:
            if not self.is_written(folder):
                raise  # else: another process was first, with the same

    def _files(self, batches: list[CodeBatch], done: Callable[[int], None]) -> Iterator[tuple[str, bytes]]:
        preprocess = self.decoder.tokenizer.preprocess
        for batch in batches:
            images_BYXC = self.decoder.decode(batch.codes_BT, batch.grid)
            contents = map_in_threads(lambda image_YXC: file_content(image_YXC, preprocess), images_BYXC)
            yield from zip(batch.names, contents, strict=True)
            done(len(batch.names))

    def take_part(self, part: Part, *, wait: bool) -> list[ImageFolder]:
        """Decode folders that no other process decodes.

        Args:
            part: share of the folders to begin with.
            wait: stay until all are decoded, and take over folders of dead processes.

        Returns:
            The folders that others are still decoding; none after ``wait``.

        Raises:
            Interrupted: on SIGTERM or SIGINT; complete folders stay.
        """
        total = sum(each.n_images for each in self.folders)
        with StopSignal() as stop, tqdm(total=total, desc="decoding", unit="img", delay=2) as bar:

            def done(n: int) -> None:
                bar.update(n)
                if stop.number:
                    raise Interrupted(stop.number)

            leases = leases_of(self.out, LEASES)
            work = SharedWork(
                self.folders,
                leases,
                self.is_written,
                do=lambda each: self.write(each, done),
                seen=lambda each: done(each.n_images),
                idle=lambda: done(0),
            )
            waiting = work.take_part(part, wait=wait)
            if not waiting and leases is not None:
                leases.clear()
            return waiting

    def say_done(self, n_waiting: int) -> int:
        """Print how many images are there, and how many folders others still decode; the number of images."""
        done = sum(each.n_images for each in self.folders if self.is_written(each))
        rest = f"; others are still decoding {n_waiting} folders" if n_waiting else ""
        print(f"{done:,} of {sum(each.n_images for each in self.folders):,} images in {self.out.shown}{rest}")
        return done


class Decoder:
    """Decodes codes in batches of one shape.

    Args:
        tokenizer: frozen, on its device.
        batch_size: images at once; the last batch is padded.
    """

    def __init__(self, tokenizer: TokenizerModel, batch_size: int) -> None:
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self._device = next(tokenizer.parameters()).device

    @torch.no_grad()
    def decode(self, codes_BT: np.ndarray, grid: int = 0) -> np.ndarray:
        """(B, T) codes, B at most ``batch_size`` => (B, Y, X, C) pixels.

        Args:
            codes_BT: of images of one shape.
            grid: of these images, an index into ``CodeSpec.grids``.

        Raises:
            DataError: a code outside the codebook.
        """
        padded_BT = np.concatenate([codes_BT, np.repeat(codes_BT[:1], self.batch_size - len(codes_BT), axis=0)])
        grids = self.tokenizer.layout.grid(torch.from_numpy(padded_BT.astype(np.int64)), grid)
        with arithmetic(self._device):
            images_BCYX = self.tokenizer.decode(grids.to(self._device))
            return to_pixels(images_BCYX, self.tokenizer.preprocess.bits)[: len(codes_BT)]


def _plan(several: list[CodeRows], tokenizer: TokenizerModel, batch_size: int) -> dict[str, Any]:
    """What the images of a folder depend on."""
    codes = {rows.split: {"rows": rows.n_rows, "sha256": rows.identity} for rows in several}
    how = {"batch_size": batch_size, "device": next(tokenizer.parameters()).device.type}
    return {"format": 1, "codes": codes, "tokenizer": tokenizer.fingerprint, **how}


def _save(content: bytes, path: Path) -> None:
    def write(target: Path) -> None:
        target.write_bytes(content)

    durable.write_file(path, write)


def _read(rows: CodeRows, start: int, stop: int, spec: CodeSpec) -> tuple[np.ndarray, list[dict[str, Any]], np.ndarray]:
    """Codes (B, T) of rows ``start..stop``, what is known of each (``image_id``, ``view``, ``label``), and its grid."""
    block = rows.read(start, stop)
    about: list[dict[str, Any]] = [{} for _ in range(start, stop)]
    names = rows.class_names
    labels = block.labels and [names[each] if names and type(each) is int else each for each in block.labels]
    columns = {"image_id": block.image_ids, "view": None if block.views is None else block.views.tolist()}
    for name, values in {**columns, "label": labels}.items():
        for entry, value in zip(about, values or (), strict=values is not None):
            entry[name] = value
    grid = spec.find_grid(rows.shape) or 0
    grids = np.full(stop - start, grid, np.int8) if block.grids is None else block.grids
    return block.codes.reshape(stop - start, -1), about, grids
