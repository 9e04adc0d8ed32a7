"""Images from parquet files and everything else that ``datasets.load_dataset`` opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from foundation.errors import DataError, nearest
from foundation.images.class_names import class_numbers, require_same_classes, require_tidy
from foundation.images.config import DatasetData
from foundation.images.failures import BadImage, read_plain_file
from foundation.images.preprocess import decode_image
from foundation.paths import expand
from foundation.randomness import permutation


class DatasetSource:
    """One split of a ``datasets`` dataset; images are decoded one by one, so that a damaged one is only listed."""

    def __init__(self, config: DatasetData, split: str, class_names: tuple[str, ...] | None = None) -> None:
        """Open a split; ``class_names`` are the classes of the training split, when this is another one."""
        import datasets

        rows = _load_split(config, split)
        if len(rows) == 0:
            raise DataError("the split holds no rows", field="data.source.split", found=f"{config.path} [{split}]")
        numbers = np.arange(len(rows))
        if config.limit is not None and config.limit < len(rows):
            numbers = np.sort(permutation(len(rows), "limit", split)[: config.limit])
            rows = rows.select(numbers)
        for field, column in (("image_column", config.image_column), ("label_column", config.label_column)):
            if column is not None and column not in rows.column_names:
                fix = nearest(column, rows.column_names)
                raise DataError("no such column", field=f"data.source.{field}", found=column, fix=fix)
        self.labels, self.class_names = _labels(rows, config.label_column, class_names)
        self._rows = rows.select_columns([config.image_column]).cast_column(
            config.image_column, datasets.Image(decode=False)
        )
        self._column = config.image_column
        self.ids = _keys(rows, split) or [f"{split}/{number:08d}" for number in numbers]  # whatever the limit

    def read(self, index: int) -> Image.Image:
        """The decoded image of row ``index``.

        Raises:
            BadImage: with the reason.
        """
        cell = self._rows[index][self._column]
        if cell is None:
            raise BadImage("unreadable", "the cell is empty")
        data = cell.get("bytes")
        if data is None:
            if not cell.get("path"):
                raise BadImage("unreadable", "the cell holds neither an image nor the path of one")
            data = read_plain_file(Path(cell["path"]), follow_links=True)  # the hub's cache consists of links
        return decode_image(data)


def _keys(rows: Any, split: str) -> list[str] | None:
    """Names of samples of tar archives (webdataset), by archive and key, where rows come from such."""
    if not {"__key__", "__url__"} <= set(rows.column_names):
        return None
    archives = [PurePosixPath(str(url)).name for url in rows["__url__"][:]]
    keys = [f"{split}/{archive}/{key}" for archive, key in zip(archives, rows["__key__"][:], strict=True)]
    return keys if len(set(keys)) == len(keys) else None


def _load_split(config: DatasetData, split: str) -> Any:
    import datasets

    local = Path(expand(config.path, "data.source.path"))
    load: Callable[..., Any] = datasets.load_dataset
    datasets.disable_progress_bars()
    if local.is_file() and (config.split, config.validation_split) != ("train", None):
        raise DataError(
            "one file has one split, train",
            field="data.source.validation_split" if config.validation_split else "data.source.split",
            found=config.validation_split or config.split,
            fix="leave both split fields out (data.validation_share holds some out), or give a folder with a file each",
        )
    try:
        if local.is_file():
            return load("parquet", data_files={split: str(local)}, split=split)
        if not local.exists() and (local.suffix == ".parquet" or config.path.startswith((".", "/"))):
            raise DataError("no such file or folder", field="data.source.path", found=config.path, fix="check the path")
        return load(config.path, config.config_name, split=split)
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds; the message is what helps
        raise DataError(
            f"cannot be opened: {error}{f' ({error.__cause__})' if error.__cause__ else ''}",
            field="data.source.path",
            found=f"{config.path} [{split}]",
            fix="check the path and the split's name; a hub dataset needs a network connection",
        ) from error


def _labels(
    rows: Any, column: str | None, class_names: tuple[str, ...] | None
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Class numbers and names of a column; ``class_names`` of the training split set the numbers."""
    if column is None:
        return None, ()
    field, feature, values = "data.source.label_column", rows.features[column], rows[column][:]
    if any(value is None for value in values):
        raise DataError("has empty cells", field=field, found=column, fix="fill them, or leave label_column out")
    if hasattr(feature, "names"):
        names = tuple(feature.names)
        require_same_classes(class_names, names, field)
        labels = np.asarray(values, np.int64)
        if labels.min() < 0 or labels.max() >= len(names):
            found = f"{labels.min()}..{labels.max()} in {column}"
            expected, fix = f"0..{len(names) - 1}", "drop the unlabelled rows, or leave label_column out"
            raise DataError("has labels outside its classes", field=field, found=found, expected=expected, fix=fix)
        return labels, names
    if not all(isinstance(value, (int, str)) for value in values):
        raise DataError("holds no classes", field=field, found=f"{column}: {feature}", expected="whole numbers or text")
    classes = [str(value) for value in values]
    require_tidy(classes, field, f"column {column}")
    return class_numbers(classes, class_names, field)
