"""Options and outputs that several commands share: names, lists, devices, groups of flags, folders, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token
from cyclopts import convert as cyclopts_convert

from foundation.config import convert, members
from foundation.config_fields import attribute_docs
from foundation.errors import ConfigError, DataError
from foundation.paths import expand, is_remote
from foundation.training.config import TrackerName
from foundation.yaml_text import Text
from pipeline.engines.config import EngineConfig
from pipeline.generation.options import SETTINGS, Speed
from pipeline.output_files import Outputs, output_at
from stage2_prior.decoding.sampling import SamplingConfig


def read_option(hint: Any, tokens: Sequence[Token]) -> Any:
    """The value of an option as its type has it: text stays text, ``1e4`` is a whole number, ``~`` the home folder.

    Raises:
        ConfigError: naming the option.
    """
    plain = {*members(hint)} - {type(None)}
    name = next((each.keyword for each in tokens if each.keyword), "") or "a value"
    if plain <= {int, float}:
        return convert(hint, Text(tokens[-1].value), name)
    if plain == {Path}:
        return Path(expand(tokens[-1].value, name))
    if list[str] in (hint, *members(hint)):
        return [each.value for each in tokens]
    return cyclopts_convert(hint, tokens)


def read_path(hint: Any, tokens: Sequence[Token]) -> Any:
    """As ``read_option``, of options and arguments that are paths, or may be."""
    paths = [expand(each.value, each.keyword or "a path") for each in tokens]
    return paths if list[str] in (hint, *members(hint)) else paths[-1]


_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
RecipeName = Annotated[
    str, Parameter(converter=read_path, help="a YAML file, a built-in recipe (tessera recipes), or a run folder")
]
RecipeOrField = Annotated[
    str | None,
    Parameter(
        converter=read_path,
        allow_leading_hyphen=True,  # of a field, where there is no recipe
        help="a YAML file, a built-in recipe (tessera recipes), or a run folder; with --mirror it may be left out",
    ),
]
Fields = Annotated[
    str,
    Parameter(
        allow_leading_hyphen=True, help="fields of the recipe, e.g. --prior.training.fit.steps 500; see tessera fields"
    ),
]
RunName = Annotated[str, Parameter(converter=read_path, help="a run folder")]
GeneratorName = Annotated[str, Parameter(converter=read_path, help="a run folder, or a model repository on the hub")]
TokenizerName = Annotated[str, Parameter(converter=read_path, help="a run folder, or a tokenizer folder")]
Images = Annotated[list[str], Parameter(converter=read_path, help="image files, or folders of images")]
Device = Annotated[str, Parameter(help="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")]
ClassLabel = Annotated[str | None, Parameter(help="class of the images: its name, or '#3' for class 3; default none")]
Extractor = Annotated[
    str | None,
    Parameter(converter=read_path, help="the extractor's weights: file, folder or hub name; default downloaded"),
]


def out_option(help: str) -> Any:
    """The option ``--out``, also ``-o``."""
    return Parameter(name=("--out", "-o"), converter=read_path, help=help)


Track = Annotated[
    TrackerName | None,
    Parameter(help="also show metrics and pictures in tensorboard, wandb or trackio; as --machine.track"),
]
MirrorAddress = Annotated[
    str | None,
    Parameter(
        name="--mirror",
        help="also copy the run to this address while it works, e.g. s3://bucket/run, and take from there what is "
        "missing here; kept for the run; none ends it",
    ),
]
RunOut = Annotated[str | None, out_option("the run folder; default runs/NAME, or the run folder that RECIPE is")]


def group(name: str) -> Any:
    """A dataclass whose fields are options of their own below a heading."""
    return Parameter(name="*", group=name)


if TYPE_CHECKING:
    from pipeline.generation.generator import ImageGenerator

    class Sampling:
        """Sampling settings that were given; the others are the run's."""

        def given(self) -> dict[str, Any]:
            """The settings that were given, by name."""

else:
    _DOCS = attribute_docs(SamplingConfig)
    _SELDOM = ("schedule_power", "schedule_start", "guidance_interval", "confidence_noise", "entropy_temperature")
    """options that work as the others do, and that help leaves to ``tessera fields``"""
    _SETTINGS = [
        (
            name,
            Annotated[hint | None, Parameter(help=_DOCS[name].split("; ")[0], show=name not in _SELDOM)],
            field(default=None),
        )
        for name, hint in SETTINGS.items()
    ]
    Sampling = make_dataclass("Sampling", _SETTINGS, frozen=True, kw_only=True)
    Sampling.__module__ = __name__
    Sampling.__doc__ = "Sampling settings that were given; the others are the run's."
    Sampling.given = lambda self: {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Options of each image."""

    best_of: int = 1
    """sample this many candidates of each image and keep the likeliest"""
    aspect: str | None = None
    """shape, of a run with several: 16:9, portrait, landscape, square"""
    height: int | None = None
    """height in pixels, if larger than trained: the prior's window slides"""
    width: int | None = None
    """width in pixels, likewise"""
    partial: bool = False
    """also write the images after each row of codes"""


@dataclass(frozen=True, kw_only=True)
class Many:
    """Options of many images in one folder. A killed or repeated command makes only what is missing."""

    count: int | None = None
    """images in all, instead of --num-images-per-label; classes take turns"""
    format: Literal["png", "parquet"] = "png"
    """a file for each image, or parquet files"""
    part: str = "0/1"
    """make part i/N of the images only, i from 0"""
    batch_size: int | None = None
    """images sampled at once; default 64 with --count, else what fits"""
    images_per_file: int = 1024
    """rows of a parquet file"""

    def require_count(self) -> None:
        """Refuse what has no effect without ``count``.

        Raises:
            ConfigError: naming the option.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("count", "batch_size") and value != each.default:
                name, fix = f"--{each.name.replace('_', '-')}", "give --count, the number of images in all"
                raise ConfigError("has no effect without --count", field=name, found=value, fix=fix)

    def require_use(self) -> None:
        """Refuse what has no effect with this ``count`` and ``format``.

        Raises:
            ConfigError: naming the option.
        """
        if self.count is None:
            self.require_count()
        elif self.format == "png" and self.images_per_file != Many.images_per_file:
            what, found = "has no effect with --format png", self.images_per_file
            raise ConfigError(what, field="--images-per-file", found=found, fix="give --format parquet")


SamplingGroup = Annotated[Sampling, group("Sampling; for more settings: tessera fields samples.sampling")]
PictureGroup = Annotated[Picture, group("Each image")]
ManyGroup = Annotated[Many, group("Many images: --out is their folder; what is there is not made again")]
SpeedGroup = Annotated[Speed, group("Engine and speed")]
EngineGroup = Annotated[EngineConfig, group("Engine and speed")]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Options of all edits."""

    class_label: ClassLabel = None
    num_images: int = 4
    """results for each image"""
    best_of: int = 1
    """sample this many candidates of each result and keep the likeliest"""
    seed: int | None = None
    """the same seed gives the same results; default random"""
    device: Device = "auto"
    sampling: SamplingGroup = field(default_factory=Sampling)
    speed: SpeedGroup = Speed()


EditGroup = Annotated[Edit, group("All edits")]


def output_folder(
    out: str | None, default: str, settings: Mapping[str, Any], names: Iterable[str] = (), patterns: Iterable[str] = ()
) -> Outputs:
    """The folder that a command writes to, checked to be writable and free for its files.

    Args:
        out: as given; None takes ``default``, or if that is taken ``default-2`` and so on.
        default: of the command.
        settings, names, patterns: see ``Outputs``.

    Raises:
        ConfigError: files of someone else or of other settings are there, or it is a part of a run.
        StorageError: not writable.
    """
    names, patterns = list(names), list(patterns)
    for folder in _choices(out, Path(default)):
        outputs = Outputs(folder, settings)
        try:
            outputs.require_free(names, patterns)
            return outputs
        except ConfigError:
            if out is not None or not folder.exists():
                raise
    raise AssertionError("names do not end")


def output_picture(out: str | None, default: str, settings: Mapping[str, Any]) -> tuple[Outputs, str]:
    """The folder and name of the picture that a command writes; see ``output_folder``.

    Raises:
        ConfigError: also another ending, or a folder.
    """
    for path in _choices(out, Path(default)):
        try:
            return output_at(output_file(str(path)), settings), path.name
        except ConfigError:
            if out is not None or not path.exists():
                raise
    raise AssertionError("names do not end")


def _choices(out: str | None, default: Path) -> Iterator[Path]:
    if out is not None:
        fix = "give a folder; encode --to, decode and sample --count write to addresses"
        ConfigError.unless(not is_remote(out), "cannot be an address here", field="--out", found=out, fix=fix)
        yield Path(out)
        return
    yield default
    yield from (default.with_stem(f"{default.stem}-{i}") for i in count(2))


def identity_of(generator: ImageGenerator) -> dict[str, str]:
    """Hashes of a generator's models, for the settings of what it writes."""
    from foundation.storage.serialization import tensors_sha256

    return {"tokenizer": generator.spec.fingerprint, "prior": tensors_sha256(generator.prior.state_dict())}


def output_file(out: str, endings: tuple[str, ...] = _PICTURES, field: str = "--out") -> Path:
    """The file that a command writes.

    Raises:
        ConfigError: another ending, or a folder.
    """
    path = Path(out)
    if path.suffix.lower() not in endings or path.is_dir():
        expected = f"a file name that ends in {', '.join(endings[:-1])} or {endings[-1]}"
        raise ConfigError("is not a name for this file", field=field, found=repr(out), expected=expected)
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
