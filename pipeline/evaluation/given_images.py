"""Images that a caller names in place of the run's: a folder, archives, a table, or an .npz file."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np

from foundation.errors import DataError
from foundation.images.config import DataConfig
from foundation.images.image_set import ImageSet, image_set
from foundation.images.source_config import ArchiveData, DatasetData, DataSource, FolderData
from foundation.images.sources import ImageSource, open_sources
from foundation.paths import is_remote
from pipeline.evaluation.npz import NpzSource

_METADATA = "metadata.csv"


def open_given(data: str, like: DataConfig, class_names: tuple[str, ...]) -> ImageSet:
    """Open images, to be read as a run reads its own.

    Args:
        data: a folder of images or of parquet files, a .tar file or pattern, a table, or an .npz file.
        like: the run's data; its preprocessing is used.
        class_names: the run's classes. Labels of the images become numbers of these; images with other classes than
            these count as images without.

    Raises:
        DataError: nothing to read there.
    """
    path = Path(data)
    if path.suffix == ".npz" and not is_remote(data):
        DataError.unless(path.is_file(), "no such file", field=data, fix="give the path of an .npz file of images")
        return image_set(NpzSource(path, class_names), like)
    source = _open(data, path, like)
    images = image_set(source, dataclasses.replace(like, max_failed_share=1.0))
    images.labels = _numbers(source, class_names)
    return images


def _open(data: str, path: Path, like: DataConfig) -> ImageSource:
    limits = like.max_megapixels * 10**6, like.remote_cache_gib
    arrays = not like.preprocess.is_plain
    if ".tar" in path.name and not path.is_dir():
        return open_sources(ArchiveData(path=data), *limits, arrays=arrays)[0]
    if path.is_dir() and not any(path.glob("*.parquet")) and not any(path.glob("data/*.parquet")):
        return open_sources(_folder(path), *limits, arrays=arrays)[0]
    try:
        return open_sources(DatasetData(path=data, label_column="label"), *limits, arrays=arrays)[0]
    except DataError as error:
        if error.field is None or "label_column" not in error.field:
            raise
    return open_sources(DatasetData(path=data), *limits, arrays=arrays)[0]


def _folder(path: Path) -> DataSource:
    """Of a folder that ``tessera sample --count`` wrote, the classes are in ``metadata.csv``."""
    table = path / _METADATA
    if not table.is_file():
        return FolderData(path=str(path), trust_classes=True)
    with table.open(encoding="utf-8", newline="") as file:
        has_classes = "label" in next(csv.reader(file), [])
    if has_classes:
        return FolderData(path=str(path), labels=str(table), trust_classes=True)
    return FolderData(path=str(path), subfolders="ignored")


def _numbers(source: ImageSource, class_names: tuple[str, ...]) -> np.ndarray | None:
    """The run's class number of each image; None unless each image has one of these classes."""
    numbers = {name: i for i, name in enumerate(class_names)}
    if source.labels is None or not all(name in numbers for name in source.class_names):
        return None
    return np.array([numbers[name] for name in source.class_names], np.int64)[np.asarray(source.labels)]
