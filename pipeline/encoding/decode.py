"""Bulk decoding: an image file for every row of codes, from a token dataset, a NumPy file or a parquet file.

Images come in folders of 1,000, each published whole, with a ``metadata.jsonl`` of image id, view and class;
``datasets.load_dataset("imagefolder", data_dir=...)`` opens the result. Any number of processes may work on it at the
same time; a finished folder is never decoded again.
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

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import MANIFEST, read_manifest
from foundation.codes.shards import codes_of, read_footer
from foundation.codes.spec import CodeSpec, require_same_codes
from foundation.config import digest, from_dict, require
from foundation.errors import CheckpointError, ConfigError, DataError, Interrupted, StorageError, nearest
from foundation.hardware import TokenAccess, usable_device
from foundation.images.preprocess import to_pil, to_uint8
from foundation.storage import durable
from foundation.storage.durable import file_sha256
from foundation.training.stop_signal import StopSignal
from pipeline.encoding.encoder import full_precision
from pipeline.output_files import require_place
from pipeline.work_sharing import Leases, Part, SharedWork, claim_folder
from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.tokenizer import TokenizerModel

PLAN = "decode.json"
LEASES = ".leases"
IMAGES_PER_FOLDER = 1000
_STREAMED = TokenAccess(form="streamed", memory_limit_mib=256)


@dataclass(frozen=True)
class CodeRows:
    """Rows of codes, read on demand.

    Attributes:
        name: folder of their images; empty for none.
        n_rows: number of rows.
        identity: SHA-256 of the content.
        read: rows ``start..stop`` as (B, T) integers.
        about: ``image_id``, ``view`` and ``label``, as known, of rows ``start..stop``.
    """

    name: str
    n_rows: int
    identity: str
    read: Callable[[int, int], np.ndarray]
    about: Callable[[int, int], Sequence[dict[str, Any]]]


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
    part: str | None = None,
    batch_size: int = 32,
    device: str = "cpu",
) -> int:
    """Decode every row of ``codes`` into the folder ``out``; see ``tessera decode``.

    Returns:
        Images in the folder now.

    Raises:
        DataError, ContractError, ConfigError, CheckpointError: codes and tokenizer that cannot be used together.
        StorageError: the disk refused.
        Interrupted: SIGTERM or SIGINT came; what is complete stays.
    """
    require(batch_size > 0, "--batch-size", batch_size, "a positive whole number")
    mine = Part() if part is None else Part.parse(part, "--start-at")
    source, target = Path(codes), Path(out)
    require_place(target)
    place = find_tokenizer(source, tokenizer)
    model = TokenizerModel.load(place).to(usable_device(device))
    check_canary(model, place)
    several = open_rows(source, model.spec, split)
    folders = [
        _Folder(rows, index, start, min(start + IMAGES_PER_FOLDER, rows.n_rows))
        for rows in several
        for index, start in enumerate(range(0, rows.n_rows, IMAGES_PER_FOLDER))
    ]
    there = [str(each.path(target)) for each in folders if each.path(target).exists()]
    if there and not (target / PLAN).exists():  # in this order: another process may have begun in between
        found, fix = f"{len(there)} such folders, e.g. {there[0]}", "move them away, or choose another folder"
        raise ConfigError("holds folders of something else", field="--out", found=found, fix=fix)
    claim_folder(target / PLAN, _plan(several, model, batch_size))
    waiting = _work(target, folders, Decoder(model, batch_size), mine, wait=part is None)
    done = sum(each.stop - each.start for each in folders if each.path(target).exists())
    rest = f"; others are still decoding {len(waiting)} folders" if waiting else ""
    print(f"{done:,} of {sum(rows.n_rows for rows in several):,} images in {target}{rest}")
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
    def decode(self, codes_BT: np.ndarray) -> np.ndarray:
        """(B, T) codes, B at most ``batch_size`` => (B, Y, X, C) uint8.

        Raises:
            DataError: a code outside the codebook.
        """
        padded_BT = np.concatenate([codes_BT, np.repeat(codes_BT[:1], self.batch_size - len(codes_BT), axis=0)])
        grids = self.tokenizer.layout.grid(torch.from_numpy(padded_BT.astype(np.int64)))
        with full_precision(self._device):
            return to_uint8(self.tokenizer.decode(grids.to(self._device)))[: len(codes_BT)]


def _plan(several: list[CodeRows], tokenizer: TokenizerModel, batch_size: int) -> dict[str, Any]:
    """What the images of a folder depend on."""
    codes = {rows.name: {"rows": rows.n_rows, "sha256": rows.identity} for rows in several}
    how = {"batch_size": batch_size, "device": next(tokenizer.parameters()).device.type}
    return {"format": 1, "codes": codes, "tokenizer": tokenizer.fingerprint, **how}


def _work(out: Path, folders: list[_Folder], decoder: Decoder, part: Part, *, wait: bool) -> list[_Folder]:
    total = sum(each.stop - each.start for each in folders)
    with StopSignal() as stop, tqdm(total=total, desc="decoding", unit="img", delay=2) as bar:

        def done(n: int) -> None:
            bar.update(n)
            if stop.number:
                raise Interrupted(stop.number)

        leases = Leases(out / LEASES)
        work = SharedWork(
            folders,
            leases,
            is_done=lambda each: each.path(out).exists(),
            do=lambda each: _write(out, each, decoder, done),
            seen=lambda each: done(each.stop - each.start),
            idle=lambda: done(0),
        )
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


def find_tokenizer(codes: Path, named: str | None) -> Path:
    """Find the folder of the tokenizer that decodes ``codes``: the named one, or the dataset's own.

    Raises:
        ConfigError: a file needs a named tokenizer.
        CheckpointError: no tokenizer there.
    """
    if named is None and not codes.is_dir():
        fix = "give the run or tokenizer folder that made the codes"
        raise ConfigError("is needed for a file of codes", field="--tokenizer", fix=fix)
    root = codes if named is None else Path(named)
    choices = [root / "codes" / "tokenizer", root / "tokenizer", root] if named is None else [root / "tokenizer", root]
    found = next((each for each in choices if (each / "config.json").is_file()), None)
    if found is None:
        raise CheckpointError("holds no tokenizer", field=str(root), fix="give one with --tokenizer")
    return found


def open_rows(codes: Path, spec: CodeSpec, split: str | None = None) -> list[CodeRows]:
    """Open the rows of a token dataset or run, one entry for each split, or of a file.

    Args:
        codes: dataset, run folder, ``.npy`` or ``.parquet``.
        spec: specification of the tokenizer's codes.
        split: split of a dataset; None takes all.

    Raises:
        DataError: no usable codes, or codes of another shape than the tokenizer's.
        ContractError: codes of another tokenizer.
        ConfigError: a split of a file.
    """
    if codes.is_dir():
        folder = codes if (codes / MANIFEST).exists() else codes / "codes"
        return _dataset_rows(folder if folder.is_dir() else codes, spec, split)
    if split is not None:
        raise ConfigError("is for token datasets", field="--split", found=split, fix="leave it out for a file")
    if not codes.is_file() or codes.suffix not in (".npy", ".parquet"):
        expected = "a token dataset, a run folder, a .npy or a .parquet file"
        raise DataError("holds no codes", field=str(codes), expected=expected)
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
        found, expected = array.shape, " or ".join(str(("N", *each)) for each in sorted(allowed, key=len))
        raise DataError("holds codes of another shape", field=str(path), found=found, expected=expected)
    flat = array.reshape(len(array), spec.n_codes)
    return CodeRows("", len(flat), file_sha256(path), lambda start, stop: np.array(flat[start:stop]), _nothing)


def _parquet_rows(path: Path, spec: CodeSpec) -> CodeRows:
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as parquet: {error}", field=str(path)) from error
    if "codes" not in table.column_names:
        raise DataError("has no column codes", field=str(path), fix=nearest("codes", table.column_names))
    if b"tessera" in (table.schema.metadata or {}):  # a file of a token dataset holds its specification
        theirs = from_dict(CodeSpec, read_footer(path)["spec"])
        require_same_codes(spec, theirs, owner="the tokenizer", other=f"the file {path.name}")
    lengths = pc.unique(pc.list_value_length(table["codes"])).to_pylist() if _is_list(table) else []
    if lengths != [spec.n_codes]:
        found, expected = f"{table.schema.field('codes').type}, lengths {lengths}", f"{spec.n_codes} whole numbers"
        raise DataError("holds rows of another length", field=f"{path}: codes", found=found, expected=expected)
    codes_NT = codes_of(table["codes"], spec)
    known = table.select([name for name in ("image_id", "view") if name in table.column_names])

    def about(start: int, stop: int) -> list[dict[str, Any]]:
        return known.slice(start, stop - start).to_pylist() if known.num_columns else _nothing(start, stop)

    return CodeRows("", len(codes_NT), file_sha256(path), lambda start, stop: codes_NT[start:stop], about)


def _is_list(table: pa.Table) -> bool:
    kind = table.schema.field("codes").type
    several = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    whole = several and pa.types.is_integer(kind.value_type) and len(table) and not table["codes"].null_count
    return bool(whole and not pc.list_flatten(table["codes"]).null_count)


def _nothing(start: int, stop: int) -> list[dict[str, Any]]:
    return [{} for _ in range(start, stop)]
