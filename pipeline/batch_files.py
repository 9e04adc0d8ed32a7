"""How many images are kept: a png file for each, or parquet files; each file appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from foundation.codes.spec import CodeSpec
from foundation.config import differences
from foundation.errors import ConfigError, StorageError
from foundation.images.preprocess import to_pil
from foundation.storage import durable
from foundation.storage.serialization import read_json
from pipeline.outputs import file_name

Format = Literal["png", "parquet"]
PLAN = "generation.json"


@dataclass(frozen=True)
class DrawnImages:
    """Images with what they were drawn from.

    Attributes:
        images: their numbers, in a row.
        pixels_BYXC: uint8.
        codes_BT: int64.
        labels: class numbers.
        seeds: one for each.
    """

    images: range
    pixels_BYXC: np.ndarray
    codes_BT: np.ndarray
    labels: Sequence[int]
    seeds: Sequence[int]


class ImageFiles(Protocol):
    """A folder of images in some format."""

    folder: Path

    def has(self, images: range) -> bool:
        """Whether all of these images, those of one job, are there."""

    def write(self, drawn: DrawnImages) -> None:
        """Keep the images of one job."""

    def n_missing(self, count: int) -> int:
        """How many of the first ``count`` images are not there."""

    def finish(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Called when all are there, with number, label and seed of each image."""


def open_files(folder: Path, form: Format, spec: CodeSpec, *, labelled: bool) -> ImageFiles:
    """The files of a folder; ``labelled`` says that every image has a class."""
    return ParquetFiles(folder / "data", spec, labelled) if form == "parquet" else PngFiles(folder, spec, labelled)


def claim(folder: Path, plan: dict[str, Any]) -> None:
    """Make a folder that of a plan, which ``generation.json`` keeps.

    Raises:
        ConfigError: the folder is that of another plan; the message names what differs.
    """
    path = folder / PLAN
    if not path.exists():
        text = json.dumps(plan, indent=1, sort_keys=True).encode()
        try:
            durable.publish_file(path, lambda temporary: durable.write_bytes(temporary, text))
        except StorageError:
            if not path.exists():  # not begun by another process at the same time
                raise
    rows = differences(read_json(path, ("count", "seed"), fix="choose another folder"), plan)
    if rows:
        shown = "".join(f"\n    {name}: the folder has {one!r}, this command {other!r}" for name, one, other in rows)
        raise ConfigError(f"was begun with other settings; they differ in:{shown}", field=str(folder),
                          fix="give the same settings, or another folder")  # fmt: skip


class PngFiles:
    """``images/00000000-CLASS.png`` and so on; ``metadata.csv`` beside the folder once all are there."""

    def __init__(self, root: Path, spec: CodeSpec, labelled: bool) -> None:
        self.folder, self._root, self._labelled, self._names = root / "images", root, labelled, spec.class_names
        self._numbers = {_number(path) for path in self.folder.glob("[0-9]*.png")}

    def has(self, images: range) -> bool:
        """See ``ImageFiles``."""
        return self._numbers.issuperset(images)

    def write(self, drawn: DrawnImages) -> None:
        """See ``ImageFiles``; what is there already stays."""
        rows = zip(drawn.images, drawn.pixels_BYXC, drawn.labels, strict=True)
        missing = [(i, pixels, label) for i, pixels, label in rows if i not in self._numbers]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda row: durable.replace_file(self._path(row[0], row[2]), png_bytes(row[1])), missing))
        self._numbers.update(drawn.images)

    def n_missing(self, count: int) -> int:
        """See ``ImageFiles``."""
        return len(set(range(count)) - {_number(path) for path in self.folder.glob("[0-9]*.png")})

    def finish(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Write ``metadata.csv``, with which ``datasets.load_dataset`` opens the folder with classes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file_name", *(["label"] if self._labelled else []), "seed"])
        for i, label, seed in rows:
            name = [self._names[label]] if self._labelled else []
            writer.writerow([self._path(i, label).relative_to(self._root).as_posix(), *name, seed])
        durable.replace_file(self._root / "metadata.csv", text.getvalue().encode())

    def _path(self, number: int, label: int) -> Path:
        name = f"-{file_name(self._names[label])}" if self._labelled else ""
        return self.folder / f"{number:08d}{name}.png"


class ParquetFiles:
    """``data/part-00000000.parquet`` and so on, named by the first image: image, label, seed, codes."""

    def __init__(self, folder: Path, spec: CodeSpec, labelled: bool) -> None:
        self.folder, self._spec, self._labelled = folder, spec, labelled

    def has(self, images: range) -> bool:
        """See ``ImageFiles``."""
        return self._path(images[0]).exists()

    def write(self, drawn: DrawnImages) -> None:
        """See ``ImageFiles``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        bytes_B = [png_bytes(pixels) for pixels in drawn.pixels_BYXC]
        names = [f"{i:08d}.png" for i in drawn.images]
        columns: dict[str, Any] = {"image": [{"bytes": b, "path": p} for b, p in zip(bytes_B, names, strict=True)]}
        if self._labelled:
            columns["label"] = list(drawn.labels)
        columns |= {"seed": list(drawn.seeds), "codes": list(drawn.codes_BT)}
        table = pa.table(columns, schema=self._features().arrow_schema)
        path = self._path(drawn.images[0])
        durable.publish_file(path, lambda temporary: pq.write_table(table, temporary, row_group_size=256))

    def n_missing(self, count: int) -> int:
        """See ``ImageFiles``."""
        import pyarrow.parquet as pq

        return count - sum(pq.read_metadata(path).num_rows for path in self.folder.glob("part-*.parquet"))

    def finish(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Nothing: the rows hold all."""

    def _path(self, first: int) -> Path:
        return self.folder / f"part-{first:08d}.parquet"

    def _features(self) -> Any:
        from datasets import ClassLabel, Features, Image, List, Value

        fields: dict[str, Any] = {"image": Image()}
        if self._labelled:
            fields["label"] = ClassLabel(names=list(self._spec.class_names))
        codes = List(Value("int32"), length=self._spec.n_codes)
        return Features({**fields, "seed": Value("int64"), "codes": codes})


def png_bytes(pixels_YXC: np.ndarray) -> bytes:
    """(Y, X, 1 or 3) uint8 => a png file's content."""
    buffer = io.BytesIO()
    to_pil(pixels_YXC).save(buffer, format="PNG")
    return buffer.getvalue()


def _number(path: Path) -> int:
    return int(path.name[:8])
