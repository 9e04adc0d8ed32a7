"""The pictures of a visit, and an archive of them."""

from __future__ import annotations

import contextlib
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.image_files import file_name

MOST = 60
"""pictures that a visit keeps, the newest"""
_KEPT_SECONDS = 3600
"""that an archive stays, for a slow download"""


@dataclass(frozen=True)
class Kept:
    """A picture of a visit.

    Attributes:
        name: of its file, without a suffix.
        about: seed, settings and command, as Markdown.
    """

    picture: Image.Image
    name: str
    about: str


def write_archive(kept: Sequence[Kept], folder: Path, visit: str) -> Path:
    """A zip of the pictures, named by the visit; older archives of the folder are removed."""
    for old in folder.glob("*.zip"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                old.unlink()
    path = folder / f"pictures-{file_name(visit)}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, each in enumerate(kept):
            with archive.open(f"{i:03d}-{file_name(each.name)}.png", "w") as file:
                each.picture.save(file, "PNG")
    return path
