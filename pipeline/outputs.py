"""Where commands write, and on which device they compute."""

from __future__ import annotations

from pathlib import Path

from foundation.errors import ConfigError
from foundation.storage import durable
from pipeline.runs.folder import RunFolder

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def output_folder(out: str, run: str) -> Path:
    """The folder that a command writes to; it can be written to.

    Raises:
        ConfigError: it is where the run keeps its own samples.
        StorageError: it cannot be written to.
    """
    folder = Path(out)
    if folder.resolve() == RunFolder(Path(run)).samples.resolve():
        raise ConfigError(
            "is where the run keeps its own samples", field="--out", found=out, fix="choose another folder"
        )
    with durable.writing(folder / "grid.png"):
        return folder


def picture_path(out: str) -> Path:
    """A file name for a picture.

    Raises:
        ConfigError: it does not end like one, or is a folder.
    """
    path = Path(out)
    if path.suffix.lower() not in _PICTURES or path.is_dir():
        raise ConfigError("is not a name for a picture", field="--out", found=repr(out),
                          expected=f"a file name that ends in one of {', '.join(_PICTURES)}")  # fmt: skip
    return path
