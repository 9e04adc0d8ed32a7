"""On the way from one image to another: between two draws, or between two given images."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch

from foundation.errors import ConfigError, DataError
from pipeline.generation.drawing import Order, draw
from pipeline.generation.inputs import read_images
from pipeline.generation.options import DrawOptions
from pipeline.generation.outputs import GeneratorOutput
from pipeline.generation.parts import GeneratorParts, Label
from pipeline.generation.requests import Request, require_count, whole
from stage2_prior.decoding.decode import stream_uniforms

_MAX_STEPS = 10_000
_TINY = 2.0**-60


class Interpolating(GeneratorParts):
    """``interpolate``."""

    @torch.no_grad()
    def interpolate(
        self,
        first: Any,
        last: Any,
        class_label: Label | None = None,
        *,
        steps: int = 8,
        **options: Unpack[DrawOptions],
    ) -> GeneratorOutput:
        """Images on the way from one to another, both ends included.

        Between two seeds: each picture is a draw from the prior, with random numbers on the way from those of one seed
        to those of the other; the ends are what the seeds give. Random numbers are taken as normal quantiles and turned
        from one to the other on a circle, so that they are distributed as fresh ones are at every step (a straight
        line would draw them to the middle, to the likeliest codes). What changes, changes code by code.

        Between two images: codes have no order, so that nothing lies between two of them. The encoder's features, of
        which codes are the roundings, are taken on a straight line and quantized. No prior has a part in it.

        Args:
            first, last: two seeds, or two images: Pillow images or (1, C, Y, X) tensors in [-1, 1].
            class_label: of all draws; None for no class, and between images.
            steps: images, 2 or more.
            options: see ``DrawOptions``; the seeds are given already, so that ``seed`` and ``best_of`` have no place.

        Raises:
            DataError, ConfigError: as a call; ends of two kinds.
        """
        request = self.request(options)
        require_count("steps", steps)
        n = whole(steps)
        if not 2 <= n <= _MAX_STEPS:
            raise ConfigError("cannot be used", field="steps", found=n, expected=f"2 to {_MAX_STEPS}: both ends count")
        for name in ("seed", "best_of"):
            if options.get(name) is not None:
                raise ConfigError("has no place between two images", field=name, found=options.get(name),
                                  fix="leave it out")  # fmt: skip
        self.require_room(n, request)
        seeds = [whole(first), whole(last)]
        if min(seeds) >= 0:
            return self._between_seeds(seeds, class_label, n, request)
        if class_label is not None:
            raise ConfigError("has no part between two images", field="class_label", found=repr(class_label)[:200])
        return self._between_images([read_images(each, self.spec, self.device) for each in (first, last)], n, request)

    def _between_seeds(self, seeds: list[int], class_label: Label | None, n: int, request: Request) -> GeneratorOutput:
        labels = self.label_ids(class_label) * n
        if len(labels) != n:
            raise DataError("are several", field="class_label", found=len(labels) // n, expected="one class, or None")
        self.require_labels(labels)
        first_T, last_T = stream_uniforms(seeds, self.spec.n_codes)
        order = Order(labels=labels, seeds=[], sampling=request.sampling, uniforms_BT=between(first_T, last_T, n))
        return self.output(draw(self.prior, order, show_progress=self.shows_progress), labels, seeds, request)

    def _between_images(self, pair: list[torch.Tensor], n: int, request: Request) -> GeneratorOutput:
        counts = tuple(len(each) for each in pair)
        if counts != (1, 1):
            raise DataError("are several", field="images", found=counts, expected="one at each end")
        start, end = self.tokenizer.features(torch.cat(pair)).float()
        shares_S111 = torch.linspace(0, 1, n, device=self.device).view(-1, 1, 1, 1)
        features_SCHW = torch.lerp(start[None], end[None], shares_S111)
        codes_ST = self.tokenizer.bottleneck.encode(features_SCHW).flatten(1)
        return self.output(codes_ST, [self.prior.null_class] * n, [], request)


def between(first_T: torch.Tensor, last_T: torch.Tensor, n: int) -> torch.Tensor:
    """Uniform numbers on the way from one sequence to another, both ends included: (n, T) float64 in [0, 1).

    If the ends are independent and uniform, so is every step by itself. Between a sequence and itself there is no way.
    """
    if torch.equal(first_T, last_T):
        return first_T.expand(n, -1).clone()
    angles_S1 = (torch.arange(n, dtype=torch.float64) * (math.pi / 2 / (n - 1))).unsqueeze(1)
    first, last = (torch.special.ndtri(each.clamp(_TINY, 1 - 2.0**-53)) for each in (first_T, last_T))
    turned_ST = torch.special.ndtr(torch.cos(angles_S1) * first + torch.sin(angles_S1) * last)
    uniforms_ST = turned_ST.clamp_max(1 - 2.0**-53)
    uniforms_ST[0], uniforms_ST[-1] = first_T, last_T
    return uniforms_ST
