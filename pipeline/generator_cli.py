"""The commands that make images, quick to load: what they do is imported when they run."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Literal

from pipeline.edit_cli import Edit
from pipeline.generation.options import Sampling, Speed


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Each image."""

    best_of: int = 1
    """draw this many candidates of each image and keep the likeliest"""
    height: int | None = None
    """rows in pixels, more than trained: the prior's window slides over the image"""
    width: int | None = None
    """columns in pixels, likewise"""
    partial: bool = False
    """also write the picture after each row of codes"""


@dataclass(frozen=True, kw_only=True)
class Many:
    """Many images, of which --out is the folder: a killed or repeated command makes only what is missing. All but
    batch_size need count.
    """

    count: int | None = None
    """images in all, in place of num_images_per_label; classes take turns"""
    format: Literal["png", "parquet"] = "png"
    """a file for each image, or parquet files"""
    shard: str = "0/1"
    """this process' share: i/N, i from 0; several processes may fill one folder"""
    batch_size: int | None = None
    """images drawn together; default 64 with count, else what fits in memory"""
    images_per_file: int = 1024
    """rows of a parquet file"""

    def require_no_others(self) -> None:
        """Refuse what is given without ``count``, on which it would have no effect.

        Raises:
            ConfigError: naming it.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("count", "batch_size") and value != each.default:
                from foundation.errors import ConfigError

                raise ConfigError("has no effect without --count", field=f"--{each.name}", found=value,
                                  fix="give --count, the number of images in all")  # fmt: skip


def sample(
    run: str,
    class_labels: list[int | str] | int | str | None = None,
    num_images_per_label: int = 1,
    seed: int | None = None,
    out: str = "new_samples",
    device: str = "cpu",
    sampling: Sampling = Sampling(),
    picture: Picture = Picture(),
    many: Many = Many(),
    speed: Speed = Speed(),
) -> None:
    """New images from a finished run.

    Options in groups can be given without the group's name: --top_k 50, --count 50000.

    Args:
        run: the run folder, or a model repository's name on the hub
        class_labels: classes by name or number, e.g. 3 or '[cat,dog]'; default every class, or none if there are none
        num_images_per_label: images of each class
        seed: the same seed gives the same images; default a random one, with --count 0
        out: folder for the images
        device: cpu, cuda, cuda:1, ...
        sampling: how codes are drawn; default the run's
        picture: each image
        many: many images, resumable, by one process or several
        speed: what changes numbers by rounding only
    """
    from pipeline.sample_commands import many_to_folder, sample_to_folder

    if many.count is not None:
        if num_images_per_label != 1 or picture.height or picture.width or picture.partial:
            from foundation.errors import ConfigError

            raise ConfigError("cannot be used with num_images_per_label, height, width or partial", field="--count",
                              found=many.count, fix="leave them out")  # fmt: skip
        options = {**sampling.given(), "best_of": picture.best_of}
        many_to_folder(run, class_labels, options, many, seed=seed or 0, out=out, device=device, speed=speed)
        return
    many.require_no_others()
    options = {**sampling.given(), **({} if many.batch_size is None else {"batch_size": many.batch_size})}
    sample_to_folder(run, class_labels, num_images_per_label, options, picture,
                     seed=seed, out=out, device=device, speed=speed)  # fmt: skip


def tune_guidance(
    run: str,
    images: int = 1000,
    extractor: Literal["small", "inception", "dinov2"] = "small",
    weights: str | None = None,
    seed: int = 0,
    write: bool = True,
    device: str = "cpu",
) -> None:
    """Search the guidance scale and schedule whose samples are closest to the training images; make them the default.

    Args:
        run: the run folder
        images: samples for each setting; more tell closer settings apart
        extractor: features for the Frechet distance; small needs no file, and compares with nothing but itself
        weights: the extractor's weights, a file, folder or hub name; default its cached or downloaded ones
        seed: of the samples
        write: make what was found the run's default in model_index.json; false only prints
        device: cpu, cuda, cuda:1, ...
    """
    from pipeline.evaluation.guidance import Tuning
    from pipeline.evaluation.guidance import tune_guidance as tune

    tune(run, Tuning(images=images, extractor=extractor, weights=weights, seed=seed), device, write=write)


def export(run: str, out: str, images: str | None = None) -> None:
    """Encoder and decoder as graphs for torch (.pt2) and, with the onnx packages, for other runtimes (.onnx).

    tessera export RUN -o FOLDER. Each graph is run on images beside the tokenizer, and the difference printed.

    Args:
        run: a run folder, or a tokenizer folder
        out: (-o) folder to make
        images: image files to check the graphs with; default those stored beside the tokenizer
    """
    from pipeline.tokenizer_commands import export_to_folder

    export_to_folder(run, out, images)


_GROUPS = {"sampling": Sampling, "picture": Picture, "many": Many, "speed": Speed, "edit": Edit}
_FLAGS = ("partial", "compile", "guess_class")


def join_groups(arguments: list[str]) -> list[str]:
    """``--top_k 50`` becomes ``--sampling.top_k 50``, ``--partial`` says true, and an edit's images become one list."""
    if arguments[:1] not in (["sample"], ["edit"]):
        return arguments
    known = {"sampling", "picture", "many", "speed"} if arguments[0] == "sample" else {"sampling", "speed", "edit"}
    group_of = {each.name: group for group in known for each in fields(_GROUPS[group])}
    n_names = 1 if arguments[0] == "sample" else 2
    positional: list[str] = []
    named: list[str] = []
    rest = arguments[n_names:]
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            (named if argument == "-h" else positional).append(argument)
            continue
        name, equals, value = argument.removeprefix("--").partition("=")
        takes_value = name != "help" and not equals
        if name in _FLAGS and takes_value and (not rest or rest[0] not in ("true", "false")):
            rest.insert(0, "true")
        name = f"{group_of[name]}.{name}" if name in group_of else name
        named += [f"--{name}{equals}{value}", *([rest.pop(0)] if takes_value and rest else [])]
    if arguments[0] == "edit" and len(positional) > 2:
        positional = [positional[0], json.dumps(positional[1:])]
    return [*arguments[:n_names], *positional, *named]


def join_out(arguments: list[str]) -> list[str]:
    """``export RUN -o FOLDER`` as the parser knows it: the folder is the second of two by their places."""
    if arguments[:1] != ["export"]:
        return arguments
    for i, each in enumerate(arguments[:-1]):
        if each in ("-o", "--out"):
            rest = arguments[1:i] + arguments[i + 2 :]
            places = [each for each in rest if not each.startswith("-")][:1]
            return ["export", *places, arguments[i + 1], *(each for each in rest if each not in places)]
    return arguments
