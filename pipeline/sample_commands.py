"""What ``tessera sample`` does: images in a folder, a few at once or many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundation.errors import ConfigError
from foundation.storage import durable
from pipeline.generation.bulk import Batch, Shard, generate_to_folder
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.options import Speed
from pipeline.generation.outputs import grid_image
from pipeline.generation.streaming import PartialImages
from pipeline.generator_cli import Many, Picture
from pipeline.image_files import file_name
from pipeline.outputs import output_folder, picture_path
from pipeline.runs.models import open_generator

ClassLabels = Sequence[int | str] | int | str | None


def sample_to_folder(
    run: str,
    class_labels: ClassLabels,
    num_images_per_label: int,
    sampling: dict[str, Any],
    picture: Picture,
    *,
    seed: int | None,
    out: str,
    device: str,
    speed: Speed,
) -> None:
    """Sample and save: one PNG per image, named by class and seed, and a grid of all."""
    generator = open_generator(run, device, speed)
    folder = output_folder(out, run)
    labels = _named(class_labels) if class_labels is not None else (list(generator.labels) or None)
    output = generator(
        labels, num_images_per_label, seed=seed, best_of=picture.best_of, height=picture.height, width=picture.width,
        callback_on_row=_writer(folder) if picture.partial else None, **sampling,
    )  # fmt: skip
    names = list(generator.labels)
    per_row = num_images_per_label if num_images_per_label > 1 else max(1, round(len(output.images) ** 0.5))
    with durable.writing(folder / "grid.png"):
        for image, label, image_seed in zip(output.images, output.labels, output.seeds, strict=True):
            prefix = "image" if label is None else file_name(names[label])
            image.save(folder / f"{prefix}-seed{image_seed}.png")
        grid_image(output.images, per_row).save(folder / "grid.png")
    print(
        f"{len(output.images)} images in {folder}, all of them in {folder / 'grid.png'} (seeds from {output.seeds[0]})"
    )


def many_to_folder(
    run: str, class_labels: ClassLabels, options: Any, many: Many, *, seed: int, out: str, device: str, speed: Speed
) -> None:
    """Make a shard of many images that are not there yet."""
    generator = open_generator(run, device, speed)
    folder = output_folder(out, run)
    labels = _named(class_labels) if class_labels is not None else (list(generator.labels) or None)
    assert many.count is not None
    batch = Batch(
        count=many.count, labels=tuple(generator.label_ids(labels)), seed=seed, format=many.format,
        batch_size=many.batch_size or Batch.batch_size, images_per_file=many.images_per_file,
    )  # fmt: skip
    done = generate_to_folder(generator, folder, batch, read_shard(many.shard), options=options)
    rate = f", {done.n_new / done.seconds:,.1f} a second" if done.n_new else ""
    print(f"{done.n_new:,} new images in {folder} in {done.seconds:.1f} s{rate}; {done.n_there:,} were there")
    if done.n_missing:
        print(f"{done.n_missing:,} images of other shards are still missing")
    else:
        print(f"complete: {many.count:,} images")


def interpolate_seeds_to_file(
    run: str, first: int, last: int, *, steps: int, class_label: int | str | None, out: str, device: str
) -> None:
    """Draw images with random numbers between those of two seeds; one strip."""
    path = picture_path(out)
    generator = open_generator(run, device)
    label = None if class_label is None else str(class_label)
    output = generator.interpolate(first, last, label, steps=steps)
    with durable.writing(path):
        grid_image(output.images, steps).save(path)
    print(f"{steps} images from seed {first} to seed {last} in {path}")


def read_shard(text: str) -> Shard:
    """``i/N`` as a shard.

    Raises:
        ConfigError: another text, or i outside 0..N - 1.
    """
    index, slash, n = text.partition("/")
    if not (slash and index.isdecimal() and n.isdecimal()):
        raise ConfigError("is not a share of the work", field="--shard", found=repr(text), expected="i/N, e.g. 0/4")
    return Shard(int(index), int(n))


def _writer(folder: Path) -> Any:
    def write(generator: ImageGenerator, part: PartialImages) -> None:
        for i, image in enumerate(part.pictures(), start=part.images.start):
            path = folder / f"partial-{i:04d}-row{part.n_done:03d}.png"
            with durable.writing(path):
                image.save(path)

    return write


def _named(class_labels: Sequence[int | str] | int | str) -> list[str]:
    """What was typed, as names: 3 is first the class named 3, and only then the class numbered 3."""
    several = [class_labels] if isinstance(class_labels, (int, str)) else class_labels
    return [str(each) for each in several]
