"""New codes for a part of given images: completion, inpainting, variations, another class.

Codes are drawn in sequence order, each given the class and all codes before it. A kept code after a drawn one has no
part in that draw, unless several candidates are drawn: ``best_of`` keeps the one with which all codes, the kept ones
included, are the likeliest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch

from foundation.codes.spec import CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.randomness import permutation
from pipeline.generation.drawing import Order, draw_best, nats_of, nats_of_codes
from pipeline.generation.inputs import (
    Given,
    below_rows,
    codes_of_pixels,
    grown,
    is_codes,
    masks_for,
    pixel_mask,
    read_codes,
    read_given,
)
from pipeline.generation.options import DrawOptions
from pipeline.generation.outputs import GeneratorOutput, decode_batch, decoded, pictures
from pipeline.generation.parts import GeneratorParts, Label
from pipeline.generation.requests import Request, require_count, require_flag, seeds_of, whole
from stage2_prior.decoding.decode import DRAW

_MAX_REACH = 4096  # pixels

Labels = Label | Sequence[Label] | None


class Editing(GeneratorParts):
    """``complete``, ``inpaint``, ``vary`` and ``change_class``.

    Images are given as Pillow images, as a (B, C, Y, X) tensor in [-1, 1] or as codes; each is edited ``num_images``
    times. Classes are one for all images, one for each, or None for none. What is kept is kept to the last bit: the
    codes, not the pixels, which the tokenizer makes anew.
    """

    @torch.no_grad()
    def complete(
        self,
        images: Any,
        class_labels: Labels = None,
        num_images: int = 1,
        *,
        rows: int | float | None = None,
        guess_class: bool = False,
        hide: bool = True,
        **options: Unpack[DrawOptions],
    ) -> GeneratorOutput:
        """Keep the first codes of images and draw the rest.

        Args:
            images: see the class; of codes also the first rows alone, or the first codes of the sequence.
            class_labels: see the class.
            num_images: completions of each image, 1 or more.
            rows: rows of the (finest) grid that are kept, or a share of them; None where codes are given that end
                where the drawing begins.
            guess_class: take the class of each image that its given codes make the likeliest, in place of no class: a
                prior that is mostly trained with classes completes better with one. Takes a pass for each class.
            hide: encode images without what is below the rows; with False the encoder sees it, and codes near the edge
                know of it.
            options: see ``DrawOptions``.

        Raises:
            DataError, ConfigError: as a call; a number of rows that leaves nothing to keep or to draw.
        """
        request = self.request(options)
        require_count("num_images", num_images)
        require_flag("guess_class", guess_class)
        require_flag("hide", hide)
        if guess_class and (class_labels is not None or not self.labels):
            raise ConfigError("has no use here", field="guess_class", found=guess_class,
                              expected="False where classes are given, or not known to the prior")  # fmt: skip
        if rows is None:
            given = Given(self._first_codes(images), None)
            known_BT = given.codes_BP.new_full((len(given.codes_BP), self.spec.n_codes), DRAW)
            known_BT[:, : given.codes_BP.shape[1]] = given.codes_BP
        else:
            below_1YX = below_rows(rows, self.spec)
            known_BT = self._kept(self._given(images, below_1YX if hide else None), below_1YX)
        if guess_class:
            class_labels = self._likeliest_classes(known_BT)
        return self.drawn(self._edit(known_BT, class_labels, num_images, request, shared=True), request)

    @torch.no_grad()
    def inpaint(
        self,
        images: Any,
        mask: Any,
        class_labels: Labels = None,
        num_images: int = 1,
        *,
        grow: int = 0,
        blend: int | None = None,
        hide: bool = True,
        **options: Unpack[DrawOptions],
    ) -> GeneratorOutput:
        """Draw the codes under a mask anew and keep the others.

        Args:
            images, class_labels: see the class.
            mask: what is drawn anew, white or True: one for all images, or one for each (see ``pixel_mask``). A code is
                drawn anew if its block of pixels is touched.
            num_images: results for each image, 1 or more.
            grow: pixels around the mask that are drawn anew too, 0 or more.
            blend: put the given pixels back outside the mask; over so many pixels next to it they fade into the new
                ones, 0 for a hard edge. None leaves the picture as the tokenizer decodes it.
            hide: encode images without what is under the mask; with False codes around it know of it.
            options: see ``DrawOptions``.

        Raises:
            DataError, ConfigError: as a call; a mask that does not fit or marks nothing.
        """
        request = self.request(options)
        require_count("num_images", num_images)
        require_flag("hide", hide)
        for name, value in (("grow", grow), ("blend", 0 if blend is None else blend)):
            if not 0 <= whole(value) <= _MAX_REACH:
                raise ConfigError("is not a number of pixels", field=name, found=repr(value)[:200],
                                  expected=f"0 to {_MAX_REACH}")  # fmt: skip
        mask_BYX = grown(pixel_mask(mask, self.spec), whole(grow))
        given = self._given(images, mask_BYX if hide else None)
        order = self._edit(self._kept(given, mask_BYX), class_labels, num_images, request, shared=len(mask_BYX) == 1)
        if blend is None:
            return self.drawn(order, request)
        if given.images_BCYX is None or request.output_type == "latent":
            raise ConfigError("needs pixels", field="blend", found=blend, fix="give images, and ask for pictures")
        n = len(order.labels) // len(given.images_BCYX)
        given_BCYX = given.images_BCYX.repeat_interleave(n, 0)
        weights_B1YX = blend_weights(mask_BYX.to(self.device), whole(blend)).expand(len(given_BCYX) // n, -1, -1, -1)
        return self._blended(order, request, given_BCYX, weights_B1YX.repeat_interleave(n, 0))

    @torch.no_grad()
    def vary(
        self,
        images: Any,
        share: float,
        class_labels: Labels = None,
        num_images: int = 1,
        **options: Unpack[DrawOptions],
    ) -> GeneratorOutput:
        """Draw a share of the codes of images anew, at places that each result's seed chooses.

        Args:
            images, class_labels: see the class.
            share: of the places of the grid, above 0 and up to 1.
            num_images: variations of each image, 1 or more.
            options: see ``DrawOptions``.

        Raises:
            DataError, ConfigError: as a call; a share outside its range.
        """
        request = self.request(options)
        require_count("num_images", num_images)
        n_places = _count(share, _n_places(self.spec))
        codes_BT = self._given(images, None).codes_BP
        order = self._edit(codes_BT, class_labels, num_images, request, shared=False)
        assert order.known_BT is not None
        chosen = [permutation(_n_places(self.spec), "vary", seed)[:n_places] for seed in order.seeds]
        anew_BT = _codes_at(np.stack(chosen), self.spec).to(self.device)
        order.known_BT.masked_fill_(anew_BT, DRAW)
        return dataclasses.replace(self.drawn(order, request), seeds=order.seeds)  # a candidate's seed has other places

    @torch.no_grad()
    def change_class(
        self,
        images: Any,
        class_labels: Labels,
        num_images: int = 1,
        *,
        share: float = 0.5,
        **options: Unpack[DrawOptions],
    ) -> GeneratorOutput:
        """Draw the codes that fit a new class worst anew, and keep the structure that the others hold.

        A code fits badly where the class makes it less likely than no class does: log p(code | class, codes before) -
        log p(code | codes before) is the pointwise mutual information of the two. The share with the least of it is
        drawn anew; of a prior that knows no null class, the share with the least log p(code | class, codes before).

        Args:
            images: see the class.
            class_labels: the new class, or one for each image.
            num_images: results for each image, 1 or more.
            share: of the codes, above 0 and up to 1.
            options: see ``DrawOptions``.

        Raises:
            DataError, ConfigError: as a call; no class, or a share outside its range.
        """
        request = self.request(options)
        require_count("num_images", num_images)
        if class_labels is None:
            raise ConfigError("is missing", field="class_labels", expected="the class that the images are to get")
        n_codes = _count(share, self.spec.n_codes)
        codes_BT = self._given(images, None).codes_BP
        labels = self._labels(class_labels, len(codes_BT))
        self.require_room(len(labels) * whole(num_images), request)
        misfit_BT = nats_of_codes(self.prior, codes_BT, labels)
        if self.label_dropout != 0:
            misfit_BT -= nats_of_codes(self.prior, codes_BT, [self.prior.null_class] * len(labels))
        worst_BN = misfit_BT.argsort(dim=1, descending=True, stable=True)[:, :n_codes]
        known_BT = codes_BT.scatter(1, worst_BN, DRAW)
        return self.drawn(self._edit(known_BT, class_labels, num_images, request, shared=False), request)

    def _given(self, images: Any, hidden_BYX: torch.Tensor | None) -> Given:
        given = read_given(images, self.tokenizer, self.spec, self.device, hidden_BYX)
        if given.codes_BP.shape[1] < self.spec.n_codes:
            raise DataError("are not all codes of an image", field="images", found=given.codes_BP.shape[1],
                            expected=self.spec.n_codes)  # fmt: skip
        return given

    def _likeliest_classes(self, known_BT: torch.Tensor) -> list[int]:
        """The class that gives the first known codes of each image the highest probability; all equally frequent."""
        first_BP = known_BT[:, : _n_first(known_BT)]
        if not first_BP.shape[1]:
            raise ConfigError("needs codes at the beginning", field="guess_class", found="none", expected="some")
        costs = [nats_of(self.prior, first_BP, [label] * len(first_BP)) for label in range(self.prior.n_classes)]
        return torch.stack(costs, 1).argmin(1).tolist()  # type: ignore[no-any-return]

    def _first_codes(self, images: Any) -> torch.Tensor:
        if not is_codes(images):
            raise ConfigError("is missing", field="rows", expected="how many rows of the images are kept",
                              fix="give rows, such as 0.5, or the codes to keep")  # fmt: skip
        return read_codes(images, self.spec).to(self.device)

    def _kept(self, given: Given, mask_BYX: torch.Tensor) -> torch.Tensor:
        """The given codes, -1 where a mask touches them."""
        if len(mask_BYX) not in (1, len(given.codes_BP)):
            raise masks_for(len(mask_BYX), len(given.codes_BP))
        return given.codes_BP.masked_fill(codes_of_pixels(mask_BYX, self.spec).to(self.device), DRAW)

    def _labels(self, class_labels: Labels, n_images: int) -> list[int]:
        labels = self.label_ids(class_labels)
        self.require_labels(labels)
        if len(labels) not in (1, n_images):
            raise DataError("are as many neither as one nor as the images", field="class_labels", found=len(labels),
                            expected=f"1 or {n_images}")  # fmt: skip
        return labels * n_images if len(labels) == 1 else labels

    def _edit(
        self, known_BT: torch.Tensor, class_labels: Labels, num_images: int, request: Request, *, shared: bool
    ) -> Order:
        """The order for ``num_images`` results of each image; ``shared`` says that all have the same places known."""
        n = whole(num_images)
        self.require_room(len(known_BT) * n, request)
        labels = [label for label in self._labels(class_labels, len(known_BT)) for _ in range(n)]
        start = _n_first(known_BT) if shared else 0
        return Order(
            labels=labels, seeds=seeds_of(request.seed, len(labels)), sampling=request.sampling, start=start,
            known_BT=known_BT.repeat_interleave(n, 0), max_rows=request.batch_size,
        )  # fmt: skip

    def _blended(
        self, order: Order, request: Request, given_BCYX: torch.Tensor, weights_B1YX: torch.Tensor
    ) -> GeneratorOutput:
        codes_BT, seeds = draw_best(self.prior, order, request.best_of, show_progress=self.shows_progress)
        codes = self.spec.grid(codes_BT)
        new_BCYX = decoded(self.tokenizer, codes, min(decode_batch(self.n_pixels), request.batch_size or len(codes)))
        images = pictures(torch.lerp(given_BCYX, new_BCYX, weights_B1YX), request.output_type)
        labels = [None if label == self.prior.null_class else label for label in order.labels]
        return GeneratorOutput(images, codes, labels, seeds)


def blend_weights(mask_BYX: torch.Tensor, reach: int) -> torch.Tensor:
    """How much of the new pixels each pixel gets: 1 under the mask, 0 farther than ``reach`` from it, (B, 1, Y, X).

    In between it falls in equal steps with the distance, the larger of rows and columns.
    """
    sums = torch.stack([grown(mask_BYX, distance).float() for distance in range(reach + 1)]).sum(0)
    return (sums / (reach + 1)).unsqueeze(1)


def _n_first(known_BT: torch.Tensor) -> int:
    """How many codes are known at the beginning of the first image."""
    return int((known_BT[0] >= 0).long().cumprod(0).sum())


def _count(share: object, n: int) -> int:
    """A share of n things, at least one of them."""
    number = float(share) if isinstance(share, (int, float)) and not isinstance(share, bool) else 0.0
    if not 0 < number <= 1:
        raise ConfigError("is not a share", field="share", found=repr(share)[:200], expected="above 0 and up to 1")
    return max(1, round(number * n))


def _n_places(spec: CodeSpec) -> int:
    return sum(level.height * level.width for level in spec.levels)


def _codes_at(places_BN: np.ndarray, spec: CodeSpec) -> torch.Tensor:
    """The codes of all depths at places, which are numbered level by level, row by row: (B, T) bool."""
    chosen_BP = np.zeros((len(places_BN), _n_places(spec)), bool)
    np.put_along_axis(chosen_BP, places_BN, True, 1)
    depth_P = np.concatenate([np.full(level.height * level.width, level.depth) for level in spec.levels])
    return torch.from_numpy(chosen_BP.repeat(depth_P, 1))
