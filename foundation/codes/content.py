"""What a shard holds, whatever wrote the file: its rows tell a file that was saved again from a damaged one."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundation.codes.shards import Shard, damaged_shard
from foundation.codes.spec import CodeSpec
from foundation.codes.tables import block_of
from foundation.errors import DataError, TesseraError

BLOCK = 64
"""rows of a checksum, to say about how many rows differ"""
RESTORE = (
    "restore the original file; to train on the rows as they are now, give the file, or a folder of such files, "
    "with tessera train-prior --codes"
)


def content_of(shard: Shard) -> dict[str, str]:
    """``content``, the SHA-256 of all rows, and ``blocks``, eight digits for each ``BLOCK`` rows."""
    blocks = [zlib.crc32(each) for each in _blocks(shard)]
    whole = hashlib.sha256()
    for each in _blocks(shard):
        whole.update(each)
    return {"content": whole.hexdigest(), "blocks": "".join(f"{each:08x}" for each in blocks)}


def read_resaved(path: Path, spec: CodeSpec) -> Shard:
    """Read the rows of a shard that another program may have saved.

    Raises:
        DataError: it cannot be read as codes.
    """
    try:
        with pq.ParquetFile(path) as file:
            block = block_of(file.read(), str(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, TesseraError):
            raise
        raise damaged_shard(path, str(error)) from error
    n = len(block.codes)
    whole = block.labels is None or all(type(each) is int for each in block.labels)
    named = block.image_ids is not None and block.views is not None
    fits = whole and named and block.codes.reshape(n, -1).shape[1] == spec.n_codes
    if not fits:
        what, expected = "has other columns than the manifest's rows", f"{spec.n_codes} codes, image_id, view"
        raise DataError(what, field=str(path), expected=expected, fix=RESTORE)
    labels = None if block.labels is None else np.array(block.labels, np.int64)
    assert block.image_ids is not None and block.views is not None
    what, expected = "has no grid of each row", "the column grid: images have several shapes"
    there = (block.grids is not None) or spec.n_grids == 1
    DataError.unless(there, what, field=str(path), expected=expected, fix=RESTORE)
    grids = block.grids if spec.n_grids > 1 else None
    return Shard(block.codes.reshape(n, -1), block.image_ids, block.views, labels, grids=grids)


def require_same_rows(path: Path, shard: Shard, listed: dict[str, Any]) -> None:
    """Refuse rows that differ from those that a manifest lists.

    Args:
        path: of the file.
        shard: its rows.
        listed: the manifest's entry, with ``rows`` and what ``content_of`` gives.

    Raises:
        DataError: about how many rows differ.
    """
    found, n, expected = content_of(shard), len(shard.image_ids), listed["rows"]
    if "content" not in listed:  # an earlier version's manifest
        what = "was saved again since the manifest was written, which does not say whether its rows are the same"
        raise DataError(what, field=str(path), fix=RESTORE)
    if found["content"] == listed["content"]:
        return
    what = "does not hold the rows that the manifest lists"
    if n != expected:
        raise DataError(what, field=str(path), found=f"{n:,} rows", expected=f"{expected:,} rows", fix=RESTORE)
    pairs = [(found["blocks"][i : i + 8], listed["blocks"][i : i + 8]) for i in range(0, len(listed["blocks"]), 8)]
    blocks = [i for i, (one, other) in enumerate(pairs) if one != other]
    most = sum(min(BLOCK, n - i * BLOCK) for i in blocks)
    first = blocks[0] * BLOCK if blocks else 0
    about = f"up to {most:,} of {n:,} rows differ, the first in rows {first}..{min(n, first + BLOCK) - 1}"
    raise DataError(what, field=str(path), found=about, fix=RESTORE)


def _blocks(shard: Shard) -> Iterator[bytes]:
    for start in range(0, len(shard.image_ids), BLOCK):
        rows = slice(start, start + BLOCK)
        labels = b"" if shard.labels is None else shard.labels[rows].astype("<i8").tobytes()
        ids = "\0".join(shard.image_ids[rows]).encode("utf-8", "surrogatepass")
        codes = np.ascontiguousarray(shard.codes_BT[rows]).astype("<i4").tobytes()
        parts = [codes, shard.views[rows].astype("u1").tobytes(), labels, ids]
        if shard.grids is not None:
            parts.append(shard.grids[rows].astype("i1").tobytes())
        yield b"|".join(parts)
