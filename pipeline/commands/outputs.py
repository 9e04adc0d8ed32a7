"""Outputs of commands: folders, pictures, lists."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from foundation.errors import ConfigError, DataError
from foundation.storage import durable
from pipeline.runs.folder import RunFolder

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def output_folder(out: str, run: str) -> Path:
    """The folder that a command writes to, checked to be writable.

    Raises:
        ConfigError: the folder of the run's own samples.
        StorageError: not writable.
    """
    folder, fix = Path(out), "choose another folder"
    if folder.resolve() == RunFolder(Path(run)).samples.resolve():
        raise ConfigError("is where the run keeps its own samples", field="--out", found=out, fix=fix)
    with durable.writing(folder / "grid.png"):
        return folder


def output_file(out: str, endings: tuple[str, ...] = _PICTURES) -> Path:
    """The file that a command writes.

    Raises:
        ConfigError: another ending, or a folder.
    """
    path = Path(out)
    if path.suffix.lower() not in endings or path.is_dir():
        expected = f"a file name that ends in {', '.join(endings[:-1])} or {endings[-1]}"
        raise ConfigError("is not a name for this file", field="--out", found=repr(out), expected=expected)
    return path


def report_unusable(failed: list[str], usable: Iterable[object]) -> None:
    """Print a line for each image that could not be used.

    Raises:
        DataError: no usable image.
    """
    for line in failed:
        print(f"unusable: {line}")
    if not usable:
        raise DataError("none of the images can be used", field="images", found=f"{len(failed)} unusable")
