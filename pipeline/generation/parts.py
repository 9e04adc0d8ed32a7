"""A tokenizer and a prior that belong together: what every way of making images builds on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foundation.codes.spec import CodeSpec, require_same_codes
from foundation.errors import ConfigError
from pipeline.generation.drawing import Order, draw_best
from pipeline.generation.outputs import BYTES_PER_PIXEL, GeneratorOutput, decode_batch, decoded, pictures
from pipeline.generation.requests import Request, label_ids, request_of, require_count, require_room, seeds_of, whole
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

Label = int | str


class GeneratorParts:
    """The two models, where they compute, and the checks and conversions that every call needs.

    Args:
        tokenizer: decodes; its fingerprint must be the one the prior was trained on.
        prior: draws codes.
        defaults: sampling settings used where a call names none.
        label_dropout: share of examples that the prior was trained on without their class; with 0 it knows no null
            class, so that guidance and images without a class are refused. None where that is not known.
    """

    def __init__(
        self,
        tokenizer: TokenizerModel,
        prior: PriorModel,
        defaults: SamplingConfig | None = None,
        *,
        label_dropout: float | None = None,
    ) -> None:
        require_same_codes(prior.spec, tokenizer.spec, owner="the prior", other="the tokenizer")
        self.tokenizer, self.prior = tokenizer.eval(), prior.eval().within_codebook()
        self.defaults, self.label_dropout = defaults or SamplingConfig(), label_dropout
        self.shows_progress = True

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""
        return {"tokenizer": self.tokenizer, "prior": self.prior}

    @property
    def spec(self) -> CodeSpec:
        """What the codes are."""
        return self.prior.spec

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.prior.head.weight.device

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> class number; empty for an unconditional prior."""
        return {name: i for i, name in enumerate(self.spec.class_names[: self.prior.n_classes])}

    def set_progress_bar_config(self, *, disable: bool = False) -> None:
        """Show or hide the progress bar."""
        self.shows_progress = not disable

    def label_ids(self, class_labels: Label | Sequence[Label] | None) -> list[int]:
        """Class numbers of names or numbers; ``None`` becomes the null class.

        Raises:
            DataError: a class that does not exist, or any where the prior knows none.
        """
        return label_ids(class_labels, self.labels, self.prior.null_class)

    def request(self, options: Mapping[str, Any]) -> Request:
        """The options of a call with the generator's defaults.

        Raises:
            ConfigError: an unknown option, a value outside its range, or guidance of a prior that cannot be guided.
        """
        request = request_of(options, self.defaults)
        scale = request.sampling.guidance_scale
        if self._knows_classes_only and scale != 1.0:
            raise ConfigError("needs the null class, which this prior was not trained on", field="guidance_scale",
                              found=scale, expected="1: prior.training.label_dropout was 0",
                              fix="give guidance_scale=1, or train a prior with label_dropout above 0")  # fmt: skip
        return request

    def require_labels(self, labels: Sequence[int]) -> None:
        """Refuse the null class of a prior that does not know it.

        Raises:
            ConfigError: the prior was trained without label dropout.
        """
        if self._knows_classes_only and self.prior.null_class in labels:
            raise ConfigError("is needed: this prior was not trained on images without a class", field="class_labels",
                              found=None, expected="a class", fix="name a class, or several")  # fmt: skip

    def require_room(self, n_images: int, request: Request, n_codes: int | None = None) -> None:
        """Refuse more images than fit in memory, each of ``n_codes`` codes; None for those of the prior.

        Raises:
            DataError: naming both sizes.
        """
        n_codes = n_codes or self.spec.n_codes
        n_pixels = self.n_pixels * n_codes // self.spec.n_codes
        values = n_pixels * self.spec.preprocess.n_channels
        require_room(n_images, n_codes, values, request, self.device, decoding=n_pixels * BYTES_PER_PIXEL)

    def order_of(
        self, class_labels: Label | Sequence[Label] | None, num_images_per_label: int, options: Mapping[str, Any]
    ) -> tuple[Request, Order]:
        """What a call asks for, checked.

        Raises:
            DataError, ConfigError: as a call.
        """
        request = self.request(options)
        require_count("num_images_per_label", num_images_per_label)
        per_label, each = whole(num_images_per_label), self.label_ids(class_labels)
        self.require_labels(each)
        self.require_room(len(each) * per_label, request)
        labels = [label for label in each for _ in range(per_label)]
        seeds = seeds_of(request.seed, len(labels))
        return request, Order(labels=labels, seeds=seeds, sampling=request.sampling, max_rows=request.batch_size)

    @property
    def n_pixels(self) -> int:
        """Pixels of one image."""
        return self.spec.preprocess.height * self.spec.preprocess.width

    def drawn(self, order: Order, request: Request) -> GeneratorOutput:
        """Carry out an order, and decode."""
        codes_BT, seeds = draw_best(self.prior, order, request.best_of, show_progress=self.shows_progress)
        return self.output(codes_BT, order.labels, seeds, request)

    def output(
        self, codes_BT: torch.Tensor, labels: Sequence[int], seeds: list[int], request: Request
    ) -> GeneratorOutput:
        """Sequences of codes => pictures, with what they were drawn from."""
        codes = self.spec.grid(codes_BT)
        images = codes if request.output_type == "latent" else self.decode(codes, request)
        return GeneratorOutput(images, codes, [None if x == self.prior.null_class else x for x in labels], seeds)

    def decode(self, codes: torch.Tensor, request: Request) -> Any:
        """Codes in the tokenizer's layout => pictures of the type that was asked for."""
        n_pixels = self.n_pixels * codes[0].numel() // self.spec.n_codes
        batch = min(decode_batch(n_pixels), request.batch_size or len(codes))
        return pictures(decoded(self.tokenizer, codes, batch), request.output_type)

    @property
    def _knows_classes_only(self) -> bool:
        return self.label_dropout == 0 and self.prior.n_classes > 0
