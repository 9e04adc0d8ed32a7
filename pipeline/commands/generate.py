"""New images: ``sample``, ``interpolate``, ``tune-guidance``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from foundation.errors import ConfigError, DataError
from pipeline.commands.options import (
    ClassLabel,
    Device,
    EngineGroup,
    Extractor,
    GeneratorName,
    Many,
    ManyGroup,
    Picture,
    PictureGroup,
    RunName,
    Sampling,
    SamplingGroup,
    SpeedGroup,
    identity_of,
    out_option,
    output_folder,
    output_picture,
    read_path,
)
from pipeline.engines.config import EngineConfig
from pipeline.evaluation.config import ExtractorName
from pipeline.generation.options import Speed
from pipeline.output_files import Outputs, output_place

if TYPE_CHECKING:
    from pipeline.engines.stream import Engine
    from pipeline.generation.generator import ImageGenerator
    from pipeline.generation.streaming import PartialImages

_NEW = "new_samples"


def sample(
    run: GeneratorName,
    /,
    *,
    class_labels: list[str] | None = None,
    num_images_per_label: int = 1,
    seed: int | None = None,
    output_type: Literal["pil", "latent"] = "pil",
    out: Annotated[str | None, out_option("folder for the images; default new_samples, or a free name like it")] = None,
    device: Device = "auto",
    sampling: SamplingGroup = Sampling(),
    picture: PictureGroup = Picture(),
    many: ManyGroup = Many(),
    speed: SpeedGroup = Speed(),
    engine: EngineGroup = EngineConfig(),
) -> None:
    """Sample new images from a finished run.

    Args:
        class_labels: classes by name (cat dog) or number ('#3' '#7'); default all
        num_images_per_label: images of each class
        seed: the same seed gives the same images; default random, or 0 with --count
        output_type: images, or their codes in codes.npz
    """
    if output_type == "latent" and (many.count is not None or picture.partial):
        what, fix = "cannot be used with --count or --partial", "give --num-images-per-label, for any number of codes"
        raise ConfigError(what, field="--output-type", found=output_type, fix=fix)
    many.require_use()
    if many.count is None and engine.engine != "local":
        fix = "give --count, the number of images in all"
        raise ConfigError("has no effect without --count", field="--engine", found=engine.engine, fix=fix)
    if many.count is not None and (num_images_per_label != 1 or picture.height or picture.width or picture.partial):
        what = "cannot be used with --num-images-per-label, --height, --width or --partial"
        raise ConfigError(what, field="--count", found=many.count, fix="leave them out")
    if picture.partial and (picture.best_of != 1 or picture.height or picture.width):
        what = "cannot be used with --best-of, --height or --width"
        raise ConfigError(what, field="--partial", found=True, fix="leave it or them out")

    from foundation.config import to_dict
    from pipeline.engines.open import open_engine
    from pipeline.generation.requests import seeds_of
    from pipeline.runs.models import open_generator

    generator = open_generator(run, device, speed)
    labels: list[str] | list[int] | None = class_labels or [*generator.labels.values()] or None
    options = sampling.given()
    if many.count is not None:
        folder = out or _NEW
        output_place(folder)
        grid = None if picture.aspect is None else generator.grid_of(picture.aspect)
        options |= {"best_of": picture.best_of}
        with open_engine(engine, None if many.part == Many.part else many.part) as found:
            _sample_many(generator, folder, labels, options, many, seed or 0, grid, found)
        return
    if many.batch_size is not None:
        options["batch_size"] = many.batch_size
    seed = seeds_of(seed, 1)[0]  # a random one, if none was given
    options |= {"best_of": picture.best_of, "height": picture.height, "width": picture.width, "seed": seed}
    if picture.aspect is not None:
        options["aspect"] = generator.grid_of(picture.aspect)
    asked = {"command": "sample", "labels": labels, "each": num_images_per_label, **options}
    asked.pop("batch_size", None)  # no image depends on it
    settings = {**asked, "defaults": to_dict(generator.defaults), **identity_of(generator)}
    if output_type == "latent":
        outputs = output_folder(out, _NEW, settings, ["codes.npz"])
        _sample_codes(generator, outputs, labels, options, num_images_per_label)
    else:
        outputs = output_folder(out, _NEW, settings, ["grid.png"], ["*-seed*.png", "*-seed*.npy", "partial-*-row*.png"])
        _sample_few(generator, outputs, labels, options, picture, num_images_per_label)


def _sample_few(
    generator: ImageGenerator,
    outputs: Outputs,
    labels: list[str] | list[int] | None,
    options: Any,
    picture: Picture,
    num_images_per_label: int,
) -> None:
    from foundation.images.shapes import shapes_text
    from pipeline.generation.outputs import grid_image, picture_type, pictures_of, write_images
    from pipeline.image_files import file_name

    folder, preview = outputs.folder, generator.tokenizer.preview
    options = {**options, "output_type": picture_type(preview)}

    def write_rows(_: ImageGenerator, part: PartialImages) -> None:
        pictures = pictures_of(part.decode(picture_type(preview)), preview)
        for i, image in enumerate(pictures, start=part.images.start):
            outputs.write_image(f"partial-{i:04d}-row{part.n_done:03d}.png", image, overview=True)

    output = generator(labels, num_images_per_label, callback_on_row=write_rows if picture.partial else None, **options)
    names, images = list(generator.labels), output.images
    per_row = num_images_per_label if num_images_per_label > 1 else max(1, round(len(images) ** 0.5))
    prefixes = ["image" if label is None else file_name(names[label]) for label in output.labels]
    stems = [f"{prefix}-seed{each}" for prefix, each in zip(prefixes, output.seeds, strict=True)]
    write_images(outputs, stems, images, preview)
    outputs.write_image("grid.png", grid_image(pictures_of(images, preview), per_row), overview=True)
    print(f"{len(images)} images in {folder}, all of them in {folder / 'grid.png'} (seeds from {output.seeds[0]})")
    if len(generator.shapes) > 1 and "aspect" not in options:
        print(f"shapes: {shapes_text(generator.shapes)}: --aspect chooses")


def _sample_codes(
    generator: ImageGenerator,
    outputs: Outputs,
    labels: list[str] | list[int] | None,
    options: Any,
    num_images_per_label: int,
) -> None:
    """Write ``codes.npz``, which ``tessera decode`` and ``train-prior --codes`` read."""
    import io

    import numpy as np

    output = generator(labels, num_images_per_label, output_type="latent", **options)
    arrays: Any = {"codes": output.codes.cpu().numpy(), "seeds": np.array(output.seeds)}  # their shape says the grid
    if output.labels[0] is not None:
        arrays |= {"labels": np.array(output.labels), "class_names": np.array(list(generator.labels))}
    content = io.BytesIO()
    np.savez(content, **arrays)
    path = outputs.write("codes.npz", content.getvalue())
    shape = " x ".join(map(str, output.codes.shape))
    print(f"codes of {len(output.codes)} images, {shape}, in {path} (seeds from {output.seeds[0]})")


def _sample_many(
    generator: ImageGenerator,
    folder: str,
    labels: list[str] | list[int] | None,
    options: Any,
    many: Many,
    seed: int,
    grid: int | None,
    engine: Engine | None,
) -> None:
    from pipeline.generation.bulk import Batch, generate_to_folder
    from pipeline.work_sharing import Part

    assert many.count is not None
    batch = Batch(
        count=many.count,
        labels=tuple(generator.label_ids(labels)),
        seed=seed,
        format=many.format,
        batch_size=many.batch_size or Batch.batch_size,
        images_per_file=many.images_per_file,
        grid=grid if len(generator.shapes) > 1 else None,
    )
    done = generate_to_folder(generator, folder, batch, Part.parse(many.part, "--part"), options=options, engine=engine)
    rate = f", {done.n_new / done.seconds:,.1f} a second" if done.n_new else ""
    print(f"{done.n_new:,} new images in {folder} in {done.seconds:.1f} s{rate}; {done.n_there:,} were there")
    if done.n_missing:
        print(f"{done.n_missing:,} images of other parts are still missing")
    else:
        print(f"complete: {many.count:,} images")


def interpolate(
    run: GeneratorName,
    first: Annotated[str, Parameter(converter=read_path)],
    last: Annotated[str, Parameter(converter=read_path)],
    /,
    *,
    steps: int = 8,
    class_label: ClassLabel = None,
    out: Annotated[str | None, out_option("file for the strip; default interpolation.png, or a free name")] = (None),
    device: Device = "auto",
) -> None:
    """Write a strip of images from one to another: between two image files, or between the samples of two seeds.

    Between images, the run may be a tokenizer folder.

    Args:
        first: the image file to start from, or a seed
        last: the image file to end at, or a seed
        steps: images in the strip, both ends included
    """
    if steps < 2:
        raise ConfigError("is too few", field="--steps", found=steps, expected="2 or more: both ends count")

    between_seeds = first.isdecimal() and last.isdecimal()
    settings = {"command": "interpolate", "run": str(Path(run).resolve()), "ends": [first, last]}
    outputs, name = output_picture(out, "interpolation.png", {**settings, "steps": steps, "class": class_label})
    if not between_seeds and class_label is not None:
        fix = "leave it out, or give two seeds"
        raise ConfigError("has no part between two images", field="--class-label", found=class_label, fix=fix)
    if between_seeds:
        from pipeline.generation.outputs import grid_image, picture_type, pictures_of
        from pipeline.runs.models import open_generator

        generator = open_generator(run, device)
        preview = generator.tokenizer.preview
        kind = picture_type(preview)
        output = generator.interpolate(int(first), int(last), class_label, steps=steps, output_type=kind)
        strip, ends = grid_image(pictures_of(output.images, preview), steps), f"seed {first} to seed {last}"
    else:
        strip, ends = _strip_between_images(run, first, last, steps, device), f"{first} to {last}"
    print(f"{steps} images from {ends} in {outputs.write_image(name, strip, overview=True)}")


def _strip_between_images(run: str, first: str, last: str, steps: int, device: str) -> Any:
    import torch

    from foundation.images.preprocess import to_unit_range
    from pipeline.evaluation.reconstruction import side_by_side
    from pipeline.generation.interpolation import images_between
    from pipeline.image_files import read_pixels
    from pipeline.runs.models import open_tokenizer

    tokenizer = open_tokenizer(run, device)
    ends = []
    for name in (first, last):
        if not Path(name).is_file():
            raise DataError("no such file", field="images", found=name, fix="give two image files")
        try:
            ends.append(to_unit_range(read_pixels(tokenizer, Path(name), keep_size=False))[0])
        except DataError as error:
            raise DataError(f"cannot be used: {error}", field=name, fix="give another image file") from error
    place = next(tokenizer.parameters()).device
    start, end = (each.to(place) for each in ends)
    between = images_between(tokenizer, start, end, torch.linspace(0, 1, steps))
    return side_by_side(tokenizer.preview.of_images(between))


def tune_guidance(
    run: RunName,
    /,
    *,
    images: int = 1000,
    repeats: int = 4,
    extractor: ExtractorName = "auto",
    weights: Extractor = None,
    seed: int = 0,
    dry_run: bool = False,
    device: Device = "auto",
) -> None:
    """Search for the guidance scale and schedule whose samples are closest to the training images.

    The best becomes the run's default, in its model_index.json, if it beats the default by more than twice the standard
    error. The table is in the run's evaluation/guidance.json.

    Args:
        images: samples for each setting and repeat; more resolve smaller differences
        repeats: how often each setting is sampled; they give its standard error
        extractor: features for the Frechet distance; auto is lite0 if installed, and small of tiny grey images
        seed: seed of the samples
        dry_run: only print what was found
    """
    from pipeline.evaluation.guidance import Tuning
    from pipeline.evaluation.guidance import tune_guidance as tune

    tuning = Tuning(images=images, repeats=repeats, extractor=extractor, weights=weights, seed=seed)
    tune(run, tuning, device, write=not dry_run)
