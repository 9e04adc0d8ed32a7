"""Small images and tables of them, as other programs write them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from foundation.errors import DataError
from foundation.images.config import Preprocess
from foundation.images.dataset import DatasetSource
from foundation.images.source_config import DatasetData


def png(value: int, side: int = 6) -> bytes:
    """A grey image of one value."""
    return encoded(Image.new("L", (side, side), value))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def arrays(n: int = 4, side: int = 6) -> list[np.ndarray]:
    """(side, side, 3) uint8 images, red of 40, 60, ..."""
    return [np.full((side, side, 3), (40 + 20 * i, 0, 0), np.uint8) for i in range(n)]


def write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def img2dataset_members(numbers: range) -> list[tuple[str, bytes]]:
    """What img2dataset writes for images of these numbers: the image, its caption and its metadata."""
    members = []
    for i in numbers:
        about = {"key": f"{i:09d}", "caption": f"a picture, number {i}", "label": i % 2, "status": "success"}
        members += [(f"{i:09d}.jpg", encoded(Image.new("L", (6, 6), i), "JPEG"))]
        members += [(f"{i:09d}.txt", about["caption"].encode()), (f"{i:09d}.json", json.dumps(about).encode())]
    return members


def hub_clone(folder: Path, values: list[int], labels: list[str], *, card: bool = True) -> Path:
    """A clone of a dataset of the hub: one parquet file of ``datasets``, and a card that names it."""
    import datasets

    cells = {"image": [{"bytes": png(value), "path": None} for value in values], "label": labels}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict(cells, features=features)
    rows.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    if card:
        files = "data_files:\n  - split: train\n    path: data/train-*\n"
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {files}---\n")
    return folder


def opened(path: Path, split: str = "train", **settings: Any) -> DatasetSource:
    return DatasetSource(DatasetData(path=str(path), **settings), split)


def reds(source: DatasetSource) -> list[int | str]:
    """The first channel of the first pixel of each image, or the reason why there is none."""
    found: list[int | str] = []
    for i in range(len(source.ids)):
        try:
            found.append(int(Preprocess(height=6, width=6)(source.read(i))[0, 0, 0]))
        except DataError as error:
            found.append(str(error))
    return found
