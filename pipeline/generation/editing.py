"""Draw a part of given images again: completion, inpainting, variations, change of class.

Codes are drawn in sequence order, each given the class and all codes before it. A kept code after a drawn one has no
part in that draw, unless several candidates are drawn: ``best_of`` keeps the one with which all codes, the kept ones
included, are the likeliest.

The functions are methods of ``ImageGenerator``, which is ``parts``. Images are Pillow images, a (B, C, Y, X) tensor in
[-1, 1] or codes; each gives ``num_images`` results. Classes are one for all images, one for each, or None for none.
Kept codes stay equal to the bit; pixels do not, since the tokenizer decodes the whole grid again.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import numpy as np
import torch

from foundation.codes.spec import CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.randomness import permutation
from pipeline.generation.drawing import SampleRequest, draw_best, nats_of, nats_of_codes
from pipeline.generation.inputs import (
    Given,
    below_rows,
    codes_of_pixels,
    grown,
    is_codes,
    pixel_mask,
    read_codes,
    read_given,
)
from pipeline.generation.options import DrawOptions
from pipeline.generation.outputs import GeneratorOutput, to_output_type
from pipeline.generation.parts import GeneratorParts, Labels, decode_images, sample
from pipeline.generation.requests import DrawSettings, require_count, require_flag, require_one_or_all, whole
from stage2_prior.decoding.decode import MASKED

_MAX_REACH = 4096  # pixels


@torch.no_grad()
def complete(
    parts: GeneratorParts,
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
        parts: the generator.
        images: see the module; of codes also the first rows alone, or the first codes of the sequence.
        class_labels: see the module.
        num_images: completions of each image, 1 or more.
        rows: rows of the (finest) grid to keep, or a share of them; None for codes that end where drawing begins.
        guess_class: take the class that makes the kept codes of an image the likeliest, instead of no class: a prior
            that is mostly trained with classes completes better with one. Costs a pass for each class.
        hide: encode images without what is below the rows; with False the encoder sees it, and codes near the edge
            depend on it.
        options: see ``DrawOptions``.

    Raises:
        DataError, ConfigError: as a call; a number of rows that leaves nothing to keep or to draw.
    """
    settings = parts.settings(options)
    require_count("num_images", num_images)
    require_flag("hide", hide)
    _require_guess(parts, guess_class, class_labels)
    if rows is None:
        first_BP = _first_codes(parts, images)
        known_BT = first_BP.new_full((len(first_BP), parts.spec.n_codes), MASKED)
        known_BT[:, : first_BP.shape[1]] = first_BP
    else:
        below_1YX = below_rows(rows, parts.spec)
        known_BT = _keep(parts, _given(parts, images, below_1YX if hide else None), below_1YX)
    if guess_class:
        class_labels = _likeliest_classes(parts, known_BT)
    return sample(parts, _request(parts, known_BT, class_labels, num_images, settings, shared=True), settings)


@torch.no_grad()
def inpaint(
    parts: GeneratorParts,
    images: Any,
    mask: Any,
    class_labels: Labels = None,
    num_images: int = 1,
    *,
    grow: int = 0,
    blend: int | None = None,
    guess_class: bool = False,
    hide: bool = True,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Draw the codes under a mask and keep the others.

    Args:
        parts: the generator.
        images, class_labels: see the module.
        mask: what is drawn, white or True: one for all images, or one for each (see ``pixel_mask``). A code is
            drawn if its block of pixels is touched.
        num_images: results for each image, 1 or more.
        grow: pixels around the mask that are drawn too, 0 or more.
        blend: put the given pixels back outside the mask; over this many pixels next to it they fade into the new ones,
            0 for a hard edge. None leaves the picture as the tokenizer decodes it.
        guess_class: take the class that makes the codes before the first drawn one the likeliest, instead of no class.
        hide: encode images without what is under the mask; with False codes around it depend on it.
        options: see ``DrawOptions``.

    Raises:
        DataError, ConfigError: as a call; a mask that does not fit or marks nothing.
    """
    settings = parts.settings(options)
    require_count("num_images", num_images)
    require_flag("hide", hide)
    _require_guess(parts, guess_class, class_labels)
    for name, value in (("grow", grow), ("blend", 0 if blend is None else blend)):
        if not 0 <= whole(value) <= _MAX_REACH:
            found, expected = repr(value)[:200], f"0 to {_MAX_REACH}"
            raise ConfigError("is not a number of pixels", field=name, found=found, expected=expected)
    mask_BYX = grown(pixel_mask(mask, parts.spec), whole(grow))
    given = _given(parts, images, mask_BYX if hide else None)
    known_BT = _keep(parts, given, mask_BYX)
    if guess_class:
        class_labels = _likeliest_classes(parts, known_BT)
    request = _request(parts, known_BT, class_labels, num_images, settings, shared=len(mask_BYX) == 1)
    if blend is None:
        return sample(parts, request, settings)
    if given.images_BCYX is None or settings.output_type == "latent":
        raise ConfigError("needs pixels", field="blend", found=blend, fix="give images, and ask for pictures")
    weights_B1YX = blend_weights(mask_BYX.to(parts.device), whole(blend)).expand(len(known_BT), -1, -1, -1)
    codes_BT, seeds = draw_best(parts.prior, request, settings.best_of, show_progress=parts.shows_progress)
    codes = parts.spec.grid(codes_BT)
    before, weights = (each.repeat_interleave(whole(num_images), 0) for each in (given.images_BCYX, weights_B1YX))
    pictures = to_output_type(before.lerp(decode_images(parts, codes, settings), weights), settings.output_type)
    return GeneratorOutput(pictures, codes, parts.without_null(request.labels), seeds)


@torch.no_grad()
def vary(
    parts: GeneratorParts,
    images: Any,
    share: float,
    class_labels: Labels = None,
    num_images: int = 1,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Draw a share of the codes of images, at positions that each result's seed chooses.

    Args:
        parts: the generator.
        images, class_labels: see the module.
        share: of the positions of the grid, above 0 and up to 1.
        num_images: variations of each image, 1 or more.
        options: see ``DrawOptions``.

    Raises:
        DataError, ConfigError: as a call; a share outside its range.
    """
    settings = parts.settings(options)
    require_count("num_images", num_images)
    n_all = _n_positions(parts.spec)
    n_drawn = _count(share, n_all)
    codes_BT = _given(parts, images, None).codes_BP
    request = _request(parts, codes_BT, class_labels, num_images, settings, shared=False)
    assert request.known_BT is not None
    chosen = [permutation(n_all, "vary", seed)[:n_drawn] for seed in request.seeds]
    request.known_BT.masked_fill_(_codes_at(np.stack(chosen), parts.spec).to(parts.device), MASKED)
    # the seed of a chosen candidate would choose other positions
    return dataclasses.replace(sample(parts, request, settings), seeds=request.seeds)


@torch.no_grad()
def change_class(
    parts: GeneratorParts,
    images: Any,
    class_labels: Labels,
    num_images: int = 1,
    *,
    share: float = 0.5,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Draw the codes that fit a new class worst, and keep the structure that the others hold.

    A code fits badly where the class makes it less likely than no class does: log p(code | class, codes before) -
    log p(code | codes before) is the pointwise mutual information of the two. The share with the least of it is drawn;
    of a prior without a null class, the share with the least log p(code | class, codes before).

    Args:
        parts: the generator.
        images: see the module.
        class_labels: the new class, or one for each image.
        num_images: results for each image, 1 or more.
        share: of the codes, above 0 and up to 1.
        options: see ``DrawOptions``.

    Raises:
        DataError, ConfigError: as a call; no class, or a share outside its range.
    """
    settings = parts.settings(options)
    require_count("num_images", num_images)
    if class_labels is None:
        raise ConfigError("is missing", field="class_labels", expected="the new class of the images")
    n_codes = _count(share, parts.spec.n_codes)
    codes_BT = _given(parts, images, None).codes_BP
    labels = _label_of_each(parts, class_labels, len(codes_BT))
    parts.require_memory(len(labels) * whole(num_images), settings)
    misfit_BT = nats_of_codes(parts.prior, codes_BT, labels)
    if parts.label_dropout != 0:
        misfit_BT -= nats_of_codes(parts.prior, codes_BT, [parts.prior.null_class] * len(labels))
    worst_BN = misfit_BT.argsort(dim=1, descending=True, stable=True)[:, :n_codes]
    known_BT = codes_BT.scatter(1, worst_BN, MASKED)
    return sample(parts, _request(parts, known_BT, class_labels, num_images, settings, shared=False), settings)


def _require_guess(parts: GeneratorParts, guess_class: bool, class_labels: Labels) -> None:
    require_flag("guess_class", guess_class)
    if guess_class and (class_labels is not None or not parts.labels):
        expected = "False where classes are given, or not known to the prior"
        raise ConfigError("has no use here", field="guess_class", found=guess_class, expected=expected)


def _likeliest_classes(parts: GeneratorParts, known_BT: torch.Tensor) -> list[int]:
    """The class that makes the codes before the first drawn one of each image the likeliest; equal prior odds."""
    n_first_B = (known_BT >= 0).long().cumprod(1).sum(1).tolist()
    if not min(n_first_B):
        raise ConfigError("needs codes at the beginning", field="guess_class", found="none", expected="some")
    classes = range(parts.prior.n_classes)
    likeliest = known_BT.new_empty(len(known_BT))
    for n_first in set(n_first_B):
        rows = [i for i, n in enumerate(n_first_B) if n == n_first]
        first_BP = known_BT[rows, :n_first]
        nats_BK = torch.stack([nats_of(parts.prior, first_BP, [label] * len(rows)) for label in classes], 1)
        likeliest[rows] = nats_BK.argmin(1)
    return likeliest.tolist()  # type: ignore[no-any-return]


def _first_codes(parts: GeneratorParts, images: Any) -> torch.Tensor:
    if not is_codes(images):
        expected, fix = "how many rows of the images are kept", "give rows, such as 0.5, or the codes to keep"
        raise ConfigError("is missing", field="rows", expected=expected, fix=fix)
    return read_codes(images, parts.spec).to(parts.device)


def _given(parts: GeneratorParts, images: Any, hidden_BYX: torch.Tensor | None) -> Given:
    given = read_given(images, parts.tokenizer, parts.spec, parts.device, hidden_BYX)
    n_codes = given.codes_BP.shape[1]
    if n_codes < parts.spec.n_codes:
        raise DataError("are not all codes of an image", field="images", found=n_codes, expected=parts.spec.n_codes)
    return given


def _keep(parts: GeneratorParts, given: Given, mask_BYX: torch.Tensor) -> torch.Tensor:
    """The given codes, -1 where a mask touches them, (B, T)."""
    require_one_or_all("mask", len(mask_BYX), len(given.codes_BP))
    return given.codes_BP.masked_fill(codes_of_pixels(mask_BYX, parts.spec).to(parts.device), MASKED)


def _label_of_each(parts: GeneratorParts, class_labels: Labels, n_images: int) -> list[int]:
    labels = parts.label_ids(class_labels)
    parts.require_labels(labels)
    require_one_or_all("class_labels", len(labels), n_images)
    return labels * n_images if len(labels) == 1 else labels


def _request(
    parts: GeneratorParts,
    known_BT: torch.Tensor,
    class_labels: Labels,
    num_images: int,
    settings: DrawSettings,
    *,
    shared: bool,
) -> SampleRequest:
    """``num_images`` results of each image; ``shared`` says that all have the same positions known."""
    n = whole(num_images)
    parts.require_memory(len(known_BT) * n, settings)
    labels = [label for label in _label_of_each(parts, class_labels, len(known_BT)) for _ in range(n)]
    return SampleRequest(
        labels=labels,
        seeds=settings.seeds(len(labels)),
        sampling=settings.sampling,
        start=int((known_BT[0] >= 0).long().cumprod(0).sum()) if shared else 0,
        known_BT=known_BT.repeat_interleave(n, 0),
        max_rows=settings.batch_size,
    )


def blend_weights(mask_BYX: torch.Tensor, reach: int) -> torch.Tensor:
    """The share of the new pixels: 1 under the mask, 0 farther than ``reach`` from it, (B, 1, Y, X).

    In between it falls in equal steps with the distance, the larger of rows and columns.
    """
    sums = torch.stack([grown(mask_BYX, distance).float() for distance in range(reach + 1)]).sum(0)
    return (sums / (reach + 1)).unsqueeze(1)


def _count(share: object, n: int) -> int:
    """A share of n things, at least one of them."""
    number = float(share) if isinstance(share, (int, float)) and not isinstance(share, bool) else 0.0
    if not 0 < number <= 1:
        raise ConfigError("is not a share", field="share", found=repr(share)[:200], expected="above 0 and up to 1")
    return max(1, round(number * n))


def _n_positions(spec: CodeSpec) -> int:
    return sum(level.height * level.width for level in spec.levels)


def _codes_at(positions_BN: np.ndarray, spec: CodeSpec) -> torch.Tensor:
    """The codes of all depths at positions, which are numbered level by level, row by row: (B, T) bool."""
    chosen_BP = np.zeros((len(positions_BN), _n_positions(spec)), bool)
    np.put_along_axis(chosen_BP, positions_BN, True, 1)
    depth_P = np.concatenate([np.full(level.height * level.width, level.depth) for level in spec.levels])
    return torch.from_numpy(chosen_BP.repeat(depth_P, 1))
