"""The commands that change images, quick to load: what they do is imported when they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.generation.options import Sampling, Speed


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What all edits take."""

    class_label: int | str | None = None
    """class of the images, by name or number; default none"""
    num_images: int = 4
    """results for each image"""
    best_of: int = 1
    """draw this many candidates of each result and keep the likeliest"""
    seed: int | None = None
    """the same seed gives the same results; default a random one"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""


def complete(
    run: str,
    images: list[str] | str,
    rows: float = 0.5,
    guess_class: bool = False,
    out: str = "completed",
    edit: Edit = Edit(),
    sampling: Sampling = Sampling(),
    speed: Speed = Speed(),
) -> None:
    """Keep the upper part of images and draw the rest.

    Args:
        run: the run folder, or a model repository's name on the hub
        images: an image file, a folder of images, or several
        rows: rows of codes to keep, a share below 1 or a whole number
        guess_class: take the class that the kept part makes the likeliest
        out: folder for the pictures: the image, what is kept of it, the results
        edit: what all edits take
        sampling: how codes are drawn; default the run's
        speed: what changes numbers by rounding only
    """
    from pipeline.edit_commands import edit_to_folder

    kept: int | float = int(rows) if rows >= 1 and rows == int(rows) else rows
    how = {"rows": kept, "guess_class": guess_class}
    edit_to_folder("complete", run, images, how, edit, sampling.given(), speed, out=out)


def inpaint(
    run: str,
    images: list[str] | str,
    mask: str | None = None,
    grow: int = 0,
    blend: int | None = None,
    out: str = "inpainted",
    edit: Edit = Edit(),
    sampling: Sampling = Sampling(),
    speed: Speed = Speed(),
) -> None:
    """Draw what a mask marks anew and keep the rest.

    Args:
        run: the run folder, or a model repository's name on the hub
        images: an image file, a folder of images, or several
        mask: an image file, white where something new is wanted; resized and cropped as the images are; required
        grow: pixels around the mask that are drawn anew too
        blend: put the given pixels back outside the mask, fading over so many pixels; default none of them
        out: folder for the pictures: the image, what is kept of it, the results
        edit: what all edits take
        sampling: how codes are drawn; default the run's
        speed: what changes numbers by rounding only
    """
    from pipeline.edit_commands import edit_to_folder, read_mask

    how = {"mask": read_mask(mask), "grow": grow, "blend": blend}
    edit_to_folder("inpaint", run, images, how, edit, sampling.given(), speed, out=out)


def vary(
    run: str,
    images: list[str] | str,
    share: float = 0.25,
    out: str = "varied",
    edit: Edit = Edit(),
    sampling: Sampling = Sampling(),
    speed: Speed = Speed(),
) -> None:
    """Draw a share of the codes of images anew, at random places.

    Args:
        run: the run folder, or a model repository's name on the hub
        images: an image file, a folder of images, or several
        share: of the codes, above 0 and up to 1
        out: folder for the pictures: the image, the results
        edit: what all edits take
        sampling: how codes are drawn; default the run's
        speed: what changes numbers by rounding only
    """
    from pipeline.edit_commands import edit_to_folder

    edit_to_folder("vary", run, images, {"share": share}, edit, sampling.given(), speed, out=out)


def change_class(
    run: str,
    images: list[str] | str,
    share: float = 0.5,
    out: str = "changed",
    edit: Edit = Edit(),
    sampling: Sampling = Sampling(),
    speed: Speed = Speed(),
) -> None:
    """Give images another class, --class_label: draw the codes that fit it worst anew and keep the others.

    Args:
        run: the run folder, or a model repository's name on the hub
        images: an image file, a folder of images, or several
        share: of the codes that are drawn anew, above 0 and up to 1
        out: folder for the pictures: the image, the results
        edit: what all edits take
        sampling: how codes are drawn; default the run's
        speed: what changes numbers by rounding only
    """
    from pipeline.edit_commands import edit_to_folder

    edit_to_folder("change_class", run, images, {"share": share}, edit, sampling.given(), speed, out=out)


EDITS: dict[str, Callable[..., None]] = {
    "complete": complete, "inpaint": inpaint, "vary": vary, "change-class": change_class,
}  # fmt: skip


def edit_help() -> dict[str, Any]:
    """The commands below ``tessera edit``."""
    return {"_help": "Change a part of images: complete, inpaint, vary, change-class.", **EDITS}
