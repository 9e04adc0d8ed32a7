"""``tessera edit``: given images, what is kept of them, and the results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from foundation.errors import DataError
from pipeline.commands.options import (
    Edit,
    EditGroup,
    GeneratorName,
    Images,
    identity_of,
    out_option,
    output_folder,
    read_path,
    report_unusable,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from foundation.images.preview import Preview
    from pipeline.generation.generator import ImageGenerator
    from pipeline.generation.outputs import GeneratorOutput
    from pipeline.output_files import Outputs

_BATCH = 16  # image files at once
_PICTURES = out_option("folder for the pictures: the image, what is kept of it, the results; default by command")


def complete(
    run: GeneratorName,
    images: Images,
    /,
    *,
    rows: float = 0.5,
    guess_class: bool | None = None,
    out: Annotated[str | None, _PICTURES] = None,
    edit: EditGroup = Edit(),
) -> None:
    """Keep the upper part of images and sample the rest.

    Args:
        rows: rows of codes to keep: a share below 1, or a number of rows
        guess_class: take the class that is likeliest given the kept part; default with a prior of any order
    """
    from pipeline import ImageGenerator
    from pipeline.generation.inputs import below_rows

    kept = int(rows) if rows >= 1 and rows == int(rows) else rows
    about = {"rows": rows, "guess_class": guess_class}
    edits = partial(ImageGenerator.complete, rows=kept, guess_class=guess_class)
    edit_to_folder(run, images, edits, lambda spec: below_rows(kept, spec), out, "completed", about, edit)


def inpaint(
    run: GeneratorName,
    images: Images,
    /,
    *,
    mask: Annotated[str, Parameter(converter=read_path)],
    grow: int = 0,
    blend: int | None = None,
    guess_class: bool | None = None,
    out: Annotated[str | None, _PICTURES] = None,
    edit: EditGroup = Edit(),
) -> None:
    """Sample what a mask marks and keep the rest.

    Args:
        mask: an image file, white where to sample; resized and cropped like the images
        grow: pixels by which to grow the mask
        blend: put the given pixels back outside the mask, fading over this many pixels; default keeps only codes
        guess_class: take the class that is likeliest given the kept part; default with a prior of any order
    """
    from pipeline import ImageGenerator
    from pipeline.generation.inputs import grown, pixel_mask

    marks, about = read_mask(mask), {"mask": mask, "grow": grow, "blend": blend, "guess_class": guess_class}
    edits = partial(ImageGenerator.inpaint, mask=marks, grow=grow, blend=blend, guess_class=guess_class)
    edit_to_folder(run, images, edits, lambda spec: grown(pixel_mask(marks, spec), grow), out, "inpainted", about, edit)


def vary(
    run: GeneratorName,
    images: Images,
    /,
    *,
    share: float = 0.25,
    out: Annotated[str | None, _PICTURES] = None,
    edit: EditGroup = Edit(),
) -> None:
    """Sample a share of the codes of images again, at random positions.

    Args:
        share: of the codes to sample again, above 0 and up to 1
    """
    from pipeline import ImageGenerator

    edits = partial(ImageGenerator.vary, share=share)
    edit_to_folder(run, images, edits, None, out, "varied", {"share": share}, edit)


def change_class(
    run: GeneratorName,
    images: Images,
    /,
    *,
    share: float = 0.5,
    out: Annotated[str | None, _PICTURES] = None,
    edit: EditGroup = Edit(),
) -> None:
    """Give images another class, --class-label: sample the codes that fit it worst and keep the others.

    Args:
        share: of the codes to sample again, above 0 and up to 1
    """
    from pipeline import ImageGenerator

    edits = partial(ImageGenerator.change_class, share=share)
    edit_to_folder(run, images, edits, None, out, "changed", {"share": share}, edit)


def edit_to_folder(
    run: str,
    images: list[str],
    edits: Callable[..., GeneratorOutput],
    region: Callable[[Any], Any] | None,
    out: str | None,
    default: str,
    about: dict[str, Any],
    edit: Edit,
) -> None:
    """Edit image files; write a row of pictures for each, and each result.

    Args:
        run: the run folder, or a model repository's name.
        images: files and folders.
        edits: generator, a batch of images => their results.
        region: code specification => mask of the pixels that are sampled, (B, Y, X); None shows none.
        out: the folder for the pictures; None takes ``default``, with a number if that is taken.
        default: of the command.
        about: the command's own options.
        edit: options of all edits.
    """
    import hashlib

    import numpy as np
    import torch

    from foundation.images.buckets import batches_of_one_shape
    from foundation.images.image_bytes import file_ending
    from foundation.images.preprocess import to_pil, to_unit_range
    from pipeline.generation.inputs import kept_pixels
    from pipeline.generation.outputs import picture_type
    from pipeline.generation.requests import seeds_of
    from pipeline.image_files import file_name
    from pipeline.runs.models import open_generator

    generator = open_generator(run, edit.device, edit.speed)
    preview = generator.tokenizer.preview
    names, pixels = _read(generator, images)
    seed = int(torch.randint(2**31, ()).item()) if edit.seed is None else edit.seed
    n = edit.num_images
    stems = [f"{i:04d}-{file_name(Path(name).stem)}" for i, name in enumerate(names)]
    settings = {"command": f"edit {default}", **about, **_settings(edit, seed), **identity_of(generator)}
    settings["images"] = hashlib.sha256(b"".join(each.tobytes() for each in pixels)).hexdigest()
    files = [f"{stem}-{kind}.png" for stem in stems for kind in ("all", *range(n))]
    files += [f"{stem}-{i}.npy" for stem in stems for i in range(n) if file_ending(preview.preprocess) == ".npy"]
    outputs = output_folder(out, default, settings, files)
    seeds = seeds_of(seed, len(names) * n)
    options = {**edit.sampling.given(), "class_labels": edit.class_label, "num_images": n, "best_of": edit.best_of}
    shapes = generator.shapes
    grids = np.array([shapes.index(each.shape[:2]) for each in pixels])
    for batch in batches_of_one_shape(grids, np.arange(len(names)), _BATCH):
        batch_BYXC = np.stack([pixels[i] for i in batch])
        own = [seed for i in batch for seed in seeds[i * n : (i + 1) * n]]
        output = edits(generator, to_unit_range(batch_BYXC), seed=own, output_type=picture_type(preview), **options)
        spec = generator.spec.of_grid(int(grids[batch[0]]))
        shown = [] if region is None else [kept_pixels(batch_BYXC, region(spec).numpy())]
        for i, (name, stem) in enumerate((names[at], stems[at]) for at in batch):
            given = [to_pil(preview(each[i : i + 1])[0]) for each in (batch_BYXC, *shown)]
            _write(outputs, stem, given, output.images[i * n : (i + 1) * n], preview)
            print(f"{name}  ->  {outputs.folder / f'{stem}-all.png'}")
    counts = [f"{k} {what}{'' if k == 1 else 's'}" for k, what in ((len(names), "image"), (n, "result"))]
    print(f"{', '.join(counts)} each, in {outputs.folder} (seeds from {seed})")


def _read(generator: ImageGenerator, images: list[str]) -> tuple[list[str], list[np.ndarray]]:
    """Paths and pixels of the image files that can be read; the others are reported."""
    from pipeline.image_files import files_below, read_pixels, readable

    failed: list[str] = []
    paths = files_below(images, generator.tokenizer.preprocess)
    read = partial(read_pixels, generator.tokenizer, keep_size=False)
    found = [(str(path), pixels[0]) for path, pixels in readable(paths, read, failed, desc="reading")]
    names = [name for name, _ in found]
    report_unusable(failed, names)
    return names, [each for _, each in found]


def read_mask(mask: str) -> Image.Image:
    """Open a mask's file.

    Raises:
        DataError: unreadable.
    """
    from foundation.images.preprocess import decode_image

    try:
        return decode_image(Path(mask).read_bytes())
    except (DataError, OSError) as error:
        raise DataError(f"cannot be used: {error}", field="--mask", found=mask, fix="give an image file") from error


def _settings(edit: Edit, seed: int) -> dict[str, Any]:
    """What the results depend on, of the options of all edits."""
    options = {"class": edit.class_label, "each": edit.num_images, "best_of": edit.best_of, "seed": seed}
    return {**options, "sampling": edit.sampling.given()}


def _write(outputs: Outputs, stem: str, given: list[Image.Image], results: Any, preview: Preview) -> None:
    from pipeline.generation.outputs import grid_image, pictures_of, write_images

    write_images(outputs, [f"{stem}-{i}" for i in range(len(results))], results, preview)
    pictures = [*given, *pictures_of(results, preview)]
    outputs.write_image(f"{stem}-all.png", grid_image(pictures, len(pictures)), overview=True)
