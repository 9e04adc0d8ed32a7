"""Configuration of the places of images: folders, archives, tables, digits. Imports neither torch, numpy nor Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from foundation.config import Choice, check_types, require
from foundation.config_fields import added_later
from foundation.paths import PathOrName, PathText, is_remote, require_no_secret


def _require_paths(source: object, *names: str) -> None:
    """Check types, and refuse an empty path, which would mean the working directory."""
    check_types(source)
    for name in names:
        value = getattr(source, name)
        require(value != "", name, '""', "a path; . for the working directory")
        require_no_secret(value or "", name)


@dataclass(frozen=True, kw_only=True)
class FolderData(Choice):
    """A folder of image files: class subfolders become labels, a flat folder means no labels."""

    type_name: ClassVar[str] = "folder"

    path: PathText
    """the folder"""
    validation_path: PathText | None = None
    """a second folder, for validation; null takes a share of the first"""
    labels: PathText | None = added_later(None)
    """CSV file with the columns path or file_name (below the folder) and label or class, one row for each image,
    instead of subfolders"""
    validation_labels: PathText | None = added_later(None)
    """the same for the second folder"""
    subfolders: Literal["classes", "ignored"] = added_later("classes")
    """whether the names of subfolders are classes"""
    trust_classes: bool = added_later(False)
    """take classes as they are, also if they look like splits, dates, cameras or names of single images"""
    follow_links: bool = added_later(False)
    """read symbolic links to files and folders"""

    def __post_init__(self) -> None:
        _require_paths(self, "path", "validation_path", "labels", "validation_labels")


@dataclass(frozen=True, kw_only=True)
class ArchiveData(Choice):
    """Tar archives of images as the webdataset package lays them out, on a local disk or in a store."""

    type_name: ClassVar[str] = "archives"

    path: PathText
    """a .tar file, a folder of them, or a pattern such as shards/train-*.tar or s3://bucket/train-{0000..0099}.tar;
    s3://, gs://, hf:// and https:// are read by way of a cache"""
    validation_path: PathText | None = None
    """the same, for validation; null takes a share of the first"""
    label_field: str | None = None
    """ending of the member that holds the class as text, e.g. cls; or of a JSON member and the key of the class in it,
    e.g. json.label; null means no labels"""
    trust_classes: bool = added_later(False)
    """take classes as they are, also if nearly every image has one of its own"""

    def __post_init__(self) -> None:
        _require_paths(self, "path", "validation_path")


@dataclass(frozen=True, kw_only=True)
class DatasetData(Choice):
    """A table of images: a parquet, Arrow, CSV or JSON file, a folder of them, a folder of ``save_to_disk``, a clone
    of a hub dataset, or any name that ``datasets.load_dataset`` opens. Cells hold images as bytes, paths, numbers,
    base64 or data URIs. Large parquet files and what only the library opens are copied to the library's cache, unless
    they are streamed.
    """

    type_name: ClassVar[str] = "dataset"

    path: PathOrName
    """file, folder, dataset name on the hub, or address of parquet files (s3://, gs://, hf://, https://)"""
    config_name: str | None = None
    """the dataset's configuration, where it has several"""
    split: str = "train"
    """split to train on"""
    validation_split: str | None = None
    """split for validation; null takes a share of the training split"""
    image_column: str = "image"
    """column with the images; a.b is field b of column a"""
    label_column: str | None = None
    """column with the classes (ClassLabel, whole numbers or text), a.b as above; null means no labels"""
    limit: int | None = None
    """use only this many images of each split, sampled uniformly; null uses all"""
    revision: str | None = added_later(None)
    """commit, branch or tag of a dataset on the hub"""
    trust_classes: bool = added_later(False)
    """take classes as they are, also if nearly every image has one of its own"""
    allow_download: bool = added_later(False)
    """fetch images of which a cell holds a web address, whenever they are read; img2dataset fetches them once"""
    white_value: float | None = added_later(None)
    """value of white where cells hold numbers: 1, 255, 4095, ...; null takes 255 or 1 if the numbers leave no doubt"""
    streaming: bool = added_later(False)
    """read rows from their parquet files when they are needed and copy nothing; files in a store always are streamed"""

    @property
    def streams(self) -> bool:
        """Whether rows stay in their files."""
        return self.streaming or is_remote(self.path)

    def __post_init__(self) -> None:
        _require_paths(self, "path")
        require(self.limit is None or self.limit > 0, "limit", self.limit, "a positive number of images, or null")
        white = self.white_value
        require(white is None or white > 0, "white_value", white, "a number above 0, or null")


@dataclass(frozen=True, kw_only=True)
class DigitsData(Choice):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels in 17 grey levels; needs no network."""

    type_name: ClassVar[str] = "digits"


DataSource = FolderData | ArchiveData | DatasetData | DigitsData
