"""Codes back into images in bulk: every row of a token dataset, or of somebody's own codes, as an image file.

Images come in folders of 1,000, each published whole, with a ``metadata.jsonl`` that says which image, view and class
each one is; ``datasets.load_dataset("imagefolder", data_dir=...)`` opens the result. Any number of processes may work
on it at the same time, and what is there is never decoded again.

Rows of codes to decode: a token dataset's, or anybody's own in a file of NumPy or parquet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from foundation.codes.dataset import MANIFEST, TokenAccess, TokenDataset, read_manifest
from foundation.codes.shards import codes_of, read_footer
from foundation.codes.spec import CodeSpec, require_same_codes
from foundation.config import differences, digest, from_dict, require
from foundation.errors import CheckpointError, ConfigError, ContractError, DataError, Interrupted, StorageError, nearest
from foundation.hardware import usable_device
from foundation.images.preprocess import to_pil, to_uint8
from foundation.storage import durable
from foundation.storage.durable import file_sha256
from foundation.storage.serialization import json_text, read_json
from foundation.training.stop_signal import StopSignal
from pipeline.encoding.encoder import full_precision
from pipeline.work_sharing import Leases, Part, SharedWork
from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.tokenizer import TokenizerModel

_STREAMED = TokenAccess(form="streamed", memory_limit_mib=256)


@dataclass(frozen=True)
class CodeRows:
    """Rows of codes, read when they are asked for.

    Attributes:
        name: of the folder that their images get; empty for none.
        n_rows: how many.
        identity: SHA-256 of what they are.
        read: rows ``start..stop`` as (B, T) integers.
        about: what is known of rows ``start..stop``, an entry each: ``image_id``, ``view``, ``label``.
    """

    name: str
    n_rows: int
    identity: str
    read: Callable[[int, int], np.ndarray]
    about: Callable[[int, int], Sequence[dict[str, Any]]]


def find_tokenizer(codes: Path, named: str | None) -> Path:
    """The folder of the tokenizer that decodes ``codes``: the one that is named, or the dataset's own.

    Raises:
        ConfigError: none is named for a file.
        CheckpointError: the named one is not there.
    """
    if named is None and not codes.is_dir():
        raise ConfigError("is needed for a file of codes", field="--tokenizer",
                          fix="name the run or the tokenizer folder that the codes are of")  # fmt: skip
    root = codes if named is None else Path(named)
    choices = [root / "codes" / "tokenizer", root / "tokenizer", root] if named is None else [root / "tokenizer", root]
    found = next((each for each in choices if (each / "config.json").is_file()), None)
    if found is None:
        raise CheckpointError("holds no tokenizer", field=str(root), fix="name one with --tokenizer")
    return found


def open_rows(codes: Path, spec: CodeSpec, split: str | None = None) -> list[CodeRows]:
    """The rows of a token dataset (or of a run's), one entry for each split, or those of a file.

    Args:
        codes: the dataset, run folder, ``.npy`` or ``.parquet``.
        spec: of the tokenizer that will decode them.
        split: of a dataset; None takes all.

    Raises:
        DataError: nothing there that can be used, or codes of another shape than the tokenizer's.
        ContractError: codes of another tokenizer.
        ConfigError: a split of a file.
    """
    if codes.is_dir():
        folder = codes if (codes / MANIFEST).exists() else codes / "codes"
        return _dataset_rows(folder if folder.is_dir() else codes, spec, split)
    if split is not None:
        raise ConfigError("is for token datasets", field="--split", found=split, fix="leave it out for a file")
    if not codes.is_file() or codes.suffix not in (".npy", ".parquet"):
        raise DataError("is nothing that holds codes", field=str(codes),
                        expected="a token dataset, a run folder, a .npy or a .parquet file")  # fmt: skip
    return [_array_rows(codes, spec) if codes.suffix == ".npy" else _parquet_rows(codes, spec)]


def _dataset_rows(folder: Path, spec: CodeSpec, split: str | None) -> list[CodeRows]:
    entries = read_manifest(folder)["splits"]
    names = [split] if split is not None else [name for name, entry in entries.items() if entry["rows"]]
    return [_split_rows(folder, spec, name) for name in names]


def _split_rows(folder: Path, spec: CodeSpec, split: str) -> CodeRows:
    dataset = TokenDataset(folder, split, _STREAMED)
    require_same_codes(spec, dataset.spec, owner="the tokenizer", other="the token dataset")
    classes = dataset.spec.class_names

    def about(start: int, stop: int) -> list[dict[str, Any]]:
        rows = np.arange(start, stop)
        known: list[dict[str, Any]] = [
            {"image_id": image_id, "view": int(view)}
            for image_id, view in zip(dataset.image_ids[start:stop], dataset.views_N[rows], strict=True)
        ]
        if dataset.labels_N is not None:
            for entry, label in zip(known, dataset.labels_N[rows], strict=True):
                entry["label"] = classes[int(label)]
        return known

    identity = digest([split, read_manifest(folder)["splits"][split]["files"]])
    return CodeRows(split, len(dataset), identity, lambda start, stop: dataset.codes_NT[np.arange(start, stop)], about)


def _array_rows(path: Path, spec: CodeSpec) -> CodeRows:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read as a NumPy array: {error}", field=str(path)) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim < 2:
        found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else "an archive of several arrays"
        raise DataError("holds no codes", field=str(path), found=found, expected="whole numbers, (images, ...)")
    allowed = {(spec.n_codes,), spec.shape, *(level.shape for level in spec.levels if len(spec.levels) == 1)}
    if array.shape[1:] not in allowed:
        raise DataError("holds codes of another shape than the tokenizer's", field=str(path), found=array.shape[1:],
                        expected=" or ".join(map(str, sorted(allowed, key=len))))  # fmt: skip
    flat = array.reshape(len(array), spec.n_codes)
    return CodeRows("", len(flat), file_sha256(path), lambda start, stop: np.array(flat[start:stop]), _nothing)


def _parquet_rows(path: Path, spec: CodeSpec) -> CodeRows:
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as parquet: {error}", field=str(path)) from error
    if "codes" not in table.column_names:
        raise DataError("has no column codes", field=str(path), fix=nearest("codes", table.column_names))
    if b"tessera" in (table.schema.metadata or {}):  # a file of a token dataset says whose codes it holds
        theirs = from_dict(CodeSpec, read_footer(path)["spec"])
        require_same_codes(spec, theirs, owner="the tokenizer", other=f"the file {path.name}")
    lengths = pc.unique(pc.list_value_length(table["codes"])).to_pylist() if _is_list(table) else []
    if lengths != [spec.n_codes]:
        raise DataError("holds rows of another length than the tokenizer's", field=f"{path}: codes",
                        found=f"{table.schema.field('codes').type}, lengths {lengths}",
                        expected=f"lists of {spec.n_codes} whole numbers")  # fmt: skip
    codes_NT = codes_of(table["codes"], spec)
    known = table.select([name for name in ("image_id", "view") if name in table.column_names])

    def about(start: int, stop: int) -> list[dict[str, Any]]:
        return known.slice(start, stop - start).to_pylist() if known.num_columns else _nothing(start, stop)

    return CodeRows("", len(codes_NT), file_sha256(path), lambda start, stop: codes_NT[start:stop], about)


def _is_list(table: pa.Table) -> bool:
    kind = table.schema.field("codes").type
    several = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    whole = several and pa.types.is_integer(kind.value_type)
    return bool(whole and len(table) and not table["codes"].null_count and not _flat(table).null_count)


def _flat(table: pa.Table) -> pa.ChunkedArray:
    return pc.list_flatten(table["codes"])


def _nothing(start: int, stop: int) -> list[dict[str, Any]]:
    return [{} for _ in range(start, stop)]


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
