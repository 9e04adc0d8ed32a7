"""Codes back into images in bulk: every row of a token dataset, or of somebody's own codes, as an image file.

Images come in folders of 1,000, each published whole, with a ``metadata.jsonl`` that says which image, view and class
each one is; ``datasets.load_dataset("imagefolder", data_dir=...)`` opens the result. Any number of processes may work
on it at the same time, and what is there is never decoded again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.config import differences, require
from foundation.errors import ContractError, Interrupted, StorageError
from foundation.hardware import usable_device
from foundation.images.preprocess import to_pil, to_uint8
from foundation.storage import durable
from foundation.storage.serialization import json_text, read_json
from foundation.training.stop_signal import StopSignal
from pipeline.code_rows import CodeRows, find_tokenizer, open_rows
from pipeline.encoding.precision import full_precision
from pipeline.leases import Leases
from pipeline.work_sharing import Part, SharedWork
from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.tokenizer import TokenizerModel

PLAN = "decode.json"
LEASES = ".leases"
IMAGES_PER_FOLDER = 1000


@dataclass(frozen=True)
class _Folder:
    """Rows ``start..stop`` of some codes, as the images of one folder."""

    rows: CodeRows
    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.rows.name or 'codes'}-{self.index:05d}"

    def path(self, out: Path) -> Path:
        return out / self.rows.name / f"{self.index:05d}"


def decode_to_folder(
    codes: str,
    out: str,
    *,
    tokenizer: str | None = None,
    split: str | None = None,
    shard: str | None = None,
    batch_size: int = 32,
    device: str = "cpu",
) -> int:
    """Decode every row of ``codes`` into the folder ``out``; see ``pipeline.encoding.cli.decode``.

    Returns:
        Images in the folder now.

    Raises:
        DataError, ContractError, ConfigError, CheckpointError: codes and tokenizer that cannot be used together.
        StorageError: the disk refused.
        Interrupted: SIGTERM or SIGINT came; what is complete stays.
    """
    require(batch_size > 0, "--batch_size", batch_size, "a positive whole number")
    part = Part() if shard is None else Part.parse(shard)
    source, target = Path(codes), Path(out)
    place = find_tokenizer(source, tokenizer)
    model = TokenizerModel.load(place).to(usable_device(device))
    check_canary(model, place)
    several = open_rows(source, model.spec, split)
    _join(target, several, model, batch_size)
    folders = [
        _Folder(rows, index, start, min(start + IMAGES_PER_FOLDER, rows.n_rows))
        for rows in several
        for index, start in enumerate(range(0, rows.n_rows, IMAGES_PER_FOLDER))
    ]
    waiting = _work(target, folders, Decoder(model, batch_size), part, wait=shard is None)
    done = sum(each.stop - each.start for each in folders if each.path(target).exists())
    rest = f"; others are still decoding {len(waiting)} folders" if waiting else ""
    print(f"{done:,} of {sum(rows.n_rows for rows in several):,} images in {target}{rest}")
    return done


class Decoder:
    """Codes => images, always in batches of one shape.

    Args:
        tokenizer: frozen, on its device.
        batch_size: images at once; the last batch is padded.
    """

    def __init__(self, tokenizer: TokenizerModel, batch_size: int) -> None:
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self._device = next(tokenizer.parameters()).device

    @torch.no_grad()
    def decode(self, codes_BT: np.ndarray) -> np.ndarray:
        """(B, T) codes, B at most ``batch_size`` => (B, Y, X, C) uint8.

        Raises:
            DataError: a code outside the codebook.
        """
        padded_BT = np.concatenate([codes_BT, np.repeat(codes_BT[:1], self.batch_size - len(codes_BT), axis=0)])
        grids = self.tokenizer.layout.grid(torch.from_numpy(padded_BT.astype(np.int64)))
        with full_precision(self._device):
            return to_uint8(self.tokenizer.decode(grids.to(self._device)))[: len(codes_BT)]


def _join(out: Path, several: list[CodeRows], tokenizer: TokenizerModel, batch_size: int) -> None:
    """Note in the folder what is decoded into it, or refuse what was begun with something else.

    Raises:
        ContractError: naming what differs.
    """
    codes = {rows.name: {"rows": rows.n_rows, "sha256": rows.identity} for rows in several}
    how = {"batch_size": batch_size, "device": next(tokenizer.parameters()).device.type}
    wanted: dict[str, Any] = {"format": 1, "codes": codes, "tokenizer": tokenizer.fingerprint, **how}
    path = out / PLAN
    if not path.exists():
        durable.sweep(out)
        try:
            durable.publish_file(path, lambda target: durable.write_bytes(target, json_text(wanted, indent=1)))
        except StorageError:
            if not path.exists():
                raise  # else: another process was first; what it wrote is compared below
    rows = differences(read_json(path, ("codes", "tokenizer"), fix="choose another folder"), wanted)
    if rows:
        name, there, new = rows[0]
        raise ContractError(f"the folder holds images of other codes: {name} differs", field=str(path), found=new,
                            expected=there, fix="choose another folder")  # fmt: skip


def _work(out: Path, folders: list[_Folder], decoder: Decoder, part: Part, *, wait: bool) -> list[_Folder]:
    total = sum(each.stop - each.start for each in folders)
    with StopSignal() as stop, tqdm(total=total, desc="decoding", unit="img", delay=2) as bar:

        def done(n: int) -> None:
            bar.update(n)
            if stop.number:
                raise Interrupted(stop.number)

        leases = Leases(out / LEASES)
        work = SharedWork(
            folders, leases, is_done=lambda each: each.path(out).exists(),
            do=lambda each: _write(out, each, decoder, done), seen=lambda each: done(each.stop - each.start),
            idle=lambda: done(0),
        )  # fmt: skip
        waiting = work.take_part(part, wait=wait)
        if not waiting:
            leases.clear()
        return waiting


def _write(out: Path, folder: _Folder, decoder: Decoder, done: Callable[[int], None]) -> None:
    path = folder.path(out)
    durable.sweep(path.parent)

    def fill(temporary: Path) -> None:
        about = folder.rows.about(folder.start, folder.stop)
        names = [f"{row:08d}.png" for row in range(folder.start, folder.stop)]
        lines = (json.dumps({"file_name": name, **each}) for name, each in zip(names, about, strict=True))
        durable.write_bytes(temporary / "metadata.jsonl", "".join(f"{line}\n" for line in lines).encode())
        with ThreadPoolExecutor(max_workers=4) as pool:
            for start in range(folder.start, folder.stop, decoder.batch_size):
                codes_BT = folder.rows.read(start, min(start + decoder.batch_size, folder.stop))
                files = [temporary / names[start - folder.start + i] for i in range(len(codes_BT))]
                list(pool.map(_save, decoder.decode(codes_BT), files))
                done(len(codes_BT))

    try:
        durable.publish_folder(path, fill)
    except StorageError:
        if not path.exists():
            raise  # else: another process was first, with the same


def _save(image_YXC: np.ndarray, path: Path) -> None:
    durable.write_file(path, lambda target: to_pil(image_YXC).save(target, "PNG"))
