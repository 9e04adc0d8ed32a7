"""The same small images in every form that a source reads: folder, tables, archives, and files of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support.image_tables import encoded

N_IMAGES, N_CLASSES = 200, 3
N_SHARDS, ROWS_IN_GROUP = 5, 16


def pictures(n: int = N_IMAGES) -> list[tuple[bytes, str]]:
    """(PNG, class) of n images of 8 x 8 pixels, no two alike."""
    from PIL import Image

    found = []
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        found.append((encoded(Image.fromarray(pixels)), f"c{i % N_CLASSES}"))
    return found


def write_folder(folder: Path, n: int = N_IMAGES) -> Path:
    for i, (data, label) in enumerate(pictures(n)):
        path = folder / label / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_parquet_files(folder: Path, n: int = N_IMAGES, shards: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = pictures(n)
    for shard, part in enumerate(np.array_split(np.arange(n), shards)):
        cells = [{"bytes": rows[i][0], "path": None} for i in part]
        table = pa.table({"image": cells, "label": [rows[i][1] for i in part]})
        path = folder / f"train-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(table, path, row_group_size=ROWS_IN_GROUP)
    return folder


def write_archives(folder: Path, n: int = N_IMAGES, shards: int = N_SHARDS) -> Path:
    """Archives as the webdataset package writes them."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    rows = pictures(n)
    for shard, part in enumerate(np.array_split(np.arange(n), shards)):
        with webdataset.TarWriter(str(folder / f"train-{shard:04d}.tar")) as tar:
            for i in part:
                tar.write({"__key__": f"{i:04d}", "png": rows[i][0], "cls": rows[i][1]})
    return folder


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(path below the folder, content) of each file."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def put_in_memory(folder: Path, bucket: str) -> str:
    """Copy a folder into fsspec's file system in memory, and return its address."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, content in files_below(folder):
        memory.pipe(f"/{bucket}/{name}", content)
    return f"memory://{bucket}"
