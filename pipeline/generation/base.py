"""Base of the generator: tokenizer, prior, sampling defaults, and the checks and decoding that every call shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foundation.arguments import as_codes, require_type, shown
from foundation.codes.spec import CodeSpec, require_same_codes
from foundation.errors import ConfigError, DataError
from foundation.images.shapes import Shape, find_shape
from pipeline.generation.drawing import SampleRequest, draw_best
from pipeline.generation.outputs import BYTES_PER_PIXEL, GeneratorOutput, decode_batch, to_output_type
from pipeline.generation.requests import DrawSettings, count, label_ids, require_flag, settings_of
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decoding.cache import free_bytes
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.lora import merged
from stage2_prior.prior import PriorModel

_SHARE = 0.5
"""of the free memory, which one call may fill"""
_PIL_BYTES = 1024
"""of a Pillow image beside its pixels"""

Label = int | str
Aspect = str | int | tuple[int, int] | None
"""of images: "16:9", portrait, landscape, square, (height, width) in pixels or an index; see ``find_shape``"""
Labels = Label | Sequence[Label] | None


class NoTokenizer:
    """Stands where a tokenizer would: of the prior's codes, only the specification is known.

    Every other attribute is refused.
    """

    def __init__(self, spec: CodeSpec) -> None:
        self.spec = spec

    def eval(self) -> NoTokenizer:
        """Itself."""
        return self

    def to(self, *target: Any) -> NoTokenizer:
        """Itself."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise self.refusal(name)

    @staticmethod
    def refusal(found: str) -> ConfigError:
        """The error where images are asked for."""
        what = "this run was trained on codes without their tokenizer: it samples codes, not images"
        fix = "take the codes (--output-type latent), or train it with train-prior --codes SOURCE --tokenizer FOLDER"
        return ConfigError(what, field="output_type", found=found, expected="latent", fix=fix)


class BaseGenerator:
    """A tokenizer and a prior, with the sampling settings that calls take by default.

    Args:
        tokenizer: decodes; its fingerprint must be the one the prior was trained on. Also as a transformers model, or
            ``NoTokenizer`` for codes alone.
        prior: distribution of the codes. Also as a transformers model.
        defaults: sampling settings used where a call names none.
        label_dropout: share of examples that the prior was trained on without their class; with 0 it knows no null
            class, so that guidance and images without a class are refused. None where it is not known.
        grid_counts: training images of each of several shapes, in whose proportions many images are sampled; empty
            takes equal ones.

    Raises:
        ContractError: the prior was trained on the codes of another tokenizer.
        ConfigError: something else than these models and settings, or counts of another number of shapes.
    """

    def __init__(
        self,
        tokenizer: TokenizerModel | NoTokenizer,
        prior: PriorModel,
        defaults: SamplingConfig | None = None,
        *,
        label_dropout: float | None = None,
        grid_counts: tuple[int, ...] = (),
    ) -> None:
        if not isinstance(tokenizer, NoTokenizer):
            tokenizer = _plain(tokenizer, TokenizerModel)
            require_type("tokenizer", tokenizer, torch.nn.Module, "give TokenizerModel.load(folder)")
        prior = _plain(prior, PriorModel)
        require_type("tokenizer.spec", getattr(tokenizer, "spec", None), CodeSpec, "give TokenizerModel.load(folder)")
        require_type("prior", prior, PriorModel, "give PriorModel.load(folder)")
        require_type("defaults", defaults, (SamplingConfig, type(None)))
        require_type("label_dropout", label_dropout, (int, float, type(None)))
        require_same_codes(prior.spec, tokenizer.spec, owner="the prior", other="the tokenizer")
        self.tokenizer: Any = tokenizer.eval()  # a TokenizerModel, or what refuses to be used as one
        self.prior = merged(prior.eval()).within_codebook()
        self.defaults, self.label_dropout = defaults or SamplingConfig(), label_dropout
        several = self.spec.n_grids if self.spec.n_grids > 1 else 0
        known, expected = not grid_counts or len(grid_counts) == several, f"{several} numbers, or none"
        ConfigError.unless(known, "are of other shapes", field="grid_counts", found=grid_counts, expected=expected)
        self.grid_counts = grid_counts or (1,) * several
        self.shows_progress = True

    @property
    def components(self) -> dict[str, Any]:
        """Both models by name, or the prior alone."""
        both = {"tokenizer": self.tokenizer, "prior": self.prior}
        return {name: model for name, model in both.items() if not isinstance(model, NoTokenizer)}

    @property
    def spec(self) -> CodeSpec:
        """The grids, codebooks and classes."""
        return self.prior.spec

    @property
    def device(self) -> torch.device:
        """Device of both models."""
        return self.prior.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the prior's weights."""
        return self.prior.head.weight.dtype

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> class number; empty for an unconditional prior."""
        return {name: i for i, name in enumerate(self.spec.class_names[: self.prior.n_classes])}

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """(height, width) in pixels of the images that it samples; a call without ``aspect`` takes the first."""
        return self.spec.preprocess.all_shapes

    def grid_of(self, aspect: Aspect) -> int:
        """The grid that an ``aspect`` of a call means, an index into ``shapes``; None is the first.

        Raises:
            ConfigError: none of the shapes; the message lists them.
        """
        return 0 if aspect is None else find_shape(aspect, self.shapes)

    @property
    def n_pixels(self) -> int:
        """Pixels of one image of the trained size."""
        return self.spec.preprocess.height * self.spec.preprocess.width

    def set_progress_bar_config(self, *, disable: bool = False) -> None:
        """Show or hide the progress bar."""
        require_flag("disable", disable)
        self.shows_progress = not disable

    def label_ids(self, class_labels: Labels) -> list[int]:
        """Class numbers of names or numbers; ``None`` becomes the null class.

        Raises:
            DataError: a class that does not exist, or a class of a prior without classes.
            ConfigError: no class, of a prior that was trained without label dropout.
        """
        labels = label_ids(class_labels, self.labels, self.prior.null_class)
        self.require_labels(labels)
        return labels

    def require_labels(self, labels: Sequence[int]) -> None:
        """Refuse the null class of a prior that was not trained on it.

        Raises:
            ConfigError: the prior was trained without label dropout.
        """
        if self._needs_classes and self.prior.null_class in labels:
            problem, fix = "is needed: this prior was not trained on images without a class", "name a class, or several"
            raise ConfigError(problem, field="class_labels", found=None, expected="a class", fix=fix)

    def require_guided(self, labels: Sequence[int], settings: DrawSettings) -> None:
        """Refuse guidance that a call gives where no image has a class.

        Raises:
            ConfigError: naming the setting.
        """
        name, useful = settings.guided, any(label != self.prior.null_class for label in labels)
        what, fix = "has no effect without a class", "name a class, or leave it out"
        ConfigError.unless(name is None or useful, what, field=name, fix=fix)

    def without_null(self, labels: Sequence[int]) -> list[int | None]:
        """Class numbers, None for the null class."""
        return [None if label == self.prior.null_class else label for label in labels]

    def settings(self, options: Mapping[str, Any]) -> DrawSettings:
        """The options of a call over the generator's defaults.

        Raises:
            ConfigError: an unknown option, one that cannot act, a value outside its range, or guidance of a prior that
                cannot be guided.
        """
        no_guidance = None if self.prior.n_classes else "this prior knows no classes, which guidance needs"
        settings = settings_of(options, self.defaults, no_guidance)
        if isinstance(self.tokenizer, NoTokenizer) and settings.output_type != "latent":
            raise self.tokenizer.refusal(settings.output_type)
        scale = settings.sampling.guidance_scale
        if self._needs_classes and scale != 1.0:
            problem, expected = "needs a prior that was trained on the null class", "1: its label_dropout was 0"
            fix = "give guidance_scale=1, or train a prior with label_dropout above 0"
            raise ConfigError(problem, field="guidance_scale", found=scale, expected=expected, fix=fix)
        return settings

    def require_memory(self, n_images: int, settings: DrawSettings, n_codes: int | None = None) -> None:
        """Refuse more images than fit in memory.

        Args:
            n_images: number of images.
            settings: number of candidates and type of the output.
            n_codes: codes of one image; None for images of the trained size.

        Raises:
            DataError: naming both sizes.
        """
        n_codes, best_of = n_codes or self.spec.n_codes, settings.best_of
        n_pixels = self.n_pixels * n_codes // self.spec.n_codes
        per_value = {"pil": self.spec.preprocess.bits // 8, "np": 4, "pt": 4, "latent": 0}[settings.output_type]
        n_values = n_pixels * self.spec.preprocess.n_channels
        needed = n_images * (best_of * n_codes * 32 + n_values * per_value + _PIL_BYTES)
        needed += n_pixels * BYTES_PER_PIXEL if per_value else 0
        limit = _SHARE * min(free_bytes(torch.device("cpu")), free_bytes(self.device))
        if needed > limit:
            candidates = f" of {best_of:,} candidates each" if best_of > 1 else ""
            found = f"{n_images:,} images{candidates}, {needed / 2**30:,.1f} GiB"
            expected = f"at most {limit / 2**30:,.1f} GiB"
            fix = "ask for fewer or smaller ones, or for files: tessera sample --count"
            raise DataError("more images than fit in memory", field="images", found=found, expected=expected, fix=fix)

    def decode(self, codes: Any, batch_size: int | None = None) -> torch.Tensor:
        """Codes in the tokenizer's layout => (B, C, Y, X) float32 in [-1, 1], decoded in batches.

        Args:
            codes: as ``GeneratorOutput.codes``, of any integer type, also of images larger than trained.
            batch_size: most images at once, 1 or more; None takes what fits.

        Raises:
            DataError: other codes than the tokenizer's.
            ConfigError: a batch size below 1.
        """
        codes = as_codes(codes, "codes", self.device)
        expected, sound = f"{('B', *self.spec.shape)}", codes.ndim > 1 and codes.numel() > 0
        DataError.unless(sound, "are not codes", field="codes", found=shown(codes), expected=expected)
        batch_size = None if batch_size is None else count("batch_size", batch_size)
        fitting = decode_batch(self.n_pixels * codes[0].numel() // self.spec.n_codes)
        batches = codes.split(min(fitting, batch_size or len(codes)))
        return torch.cat([self.tokenizer.decode(batch).clamp_(-1, 1) for batch in batches])

    @property
    def _needs_classes(self) -> bool:
        return self.label_dropout == 0 and self.prior.n_classes > 0


def _plain(model: Any, kind: type[Any]) -> Any:
    """The plain module of a transformers model; anything else as it is."""
    inner = getattr(model, "model", None)
    return inner if isinstance(inner, kind) else model


def request_of(
    pipe: BaseGenerator,
    class_labels: Labels,
    num_images_per_label: int,
    options: Mapping[str, Any],
    aspect: Aspect = None,
) -> tuple[SampleRequest, DrawSettings]:
    """Validate a call for new images.

    Raises:
        DataError, ConfigError: see ``ImageGenerator.__call__``.
    """
    settings = pipe.settings(options)
    per_label = count("num_images_per_label", num_images_per_label)
    each = pipe.label_ids(class_labels)
    pipe.require_guided(each, settings)
    pipe.require_memory(len(each) * per_label, settings)
    labels = [label for label in each for _ in range(per_label)]
    seeds, sampling, grid = settings.seeds(len(labels)), settings.sampling, pipe.grid_of(aspect)
    request = SampleRequest(labels=labels, seeds=seeds, sampling=sampling, max_rows=settings.batch_size, grid=grid)
    return request, settings


def sample(pipe: BaseGenerator, request: SampleRequest, settings: DrawSettings) -> GeneratorOutput:
    """Sample the codes of a request and decode them."""
    codes_BT, seeds = draw_best(pipe.prior, request, settings.best_of, show_progress=pipe.shows_progress)
    return output_of(pipe, pipe.spec.grid(codes_BT, request.grid), request.labels, seeds, settings)


def output_of(
    pipe: BaseGenerator, codes: torch.Tensor, labels: Sequence[int], seeds: list[int], settings: DrawSettings
) -> GeneratorOutput:
    """Codes in the tokenizer's layout => images of the requested type, with their labels and seeds."""
    images = codes
    if settings.output_type != "latent":
        images = to_output_type(pipe.decode(codes, settings.batch_size), settings.output_type, pipe.tokenizer.preview)
    return GeneratorOutput(images, codes, pipe.without_null(labels), seeds)
