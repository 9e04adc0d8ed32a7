"""Editing of given images: completion, inpainting, variations, change of class.

With a prior of order any or masked, each sampled code is given the class, all kept codes and the codes sampled before
it. With a prior of raster order it is given the codes before it alone: a kept code has no influence on the sampled
codes before it, except through ``best_of``, which keeps the candidate with the likeliest codes in all, kept ones
included.

The public functions are methods of ``ImageGenerator``, which is ``pipe``. Images are Pillow images, a (B, C, Y, X)
tensor in [-1, 1] or codes; each gives ``num_images`` results. Of a generator of several shapes, images take the shape
nearest to their aspect ratio, all of a call the same one, and results have it too. Classes are one for all images, one
for each, or None for none. Kept codes stay equal to the bit; pixels do not, since the tokenizer decodes the whole grid
again.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import numpy as np
import torch

from foundation.codes.spec import CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.randomness import permutation
from pipeline.generation.base import BaseGenerator, Labels, sample
from pipeline.generation.drawing import SampleRequest, draw_best, nats_of, nats_of_codes
from pipeline.generation.inputs import (
    Given,
    below_rows,
    codes_of_pixels,
    grid_of,
    grown,
    is_codes,
    pixel_mask,
    read_codes,
    read_given,
)
from pipeline.generation.options import DrawOptions
from pipeline.generation.outputs import GeneratorOutput, to_output_type
from pipeline.generation.requests import DrawSettings, count, require_flag, require_one_or_all, shown, whole
from stage2_prior.likelihood import nats_of_known
from stage2_prior.orders import MASKED

_MAX_REACH = 4096  # pixels


@torch.no_grad()
def complete(
    pipe: BaseGenerator,
    images: Any,
    class_labels: Labels = None,
    num_images: int = 1,
    *,
    rows: int | float | None = None,
    guess_class: bool | None = None,
    hide: bool = True,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Keep the first codes of images and sample the rest.

    Args:
        pipe: the generator itself.
        images: see the module; of codes also the first rows alone, or the first codes of the sequence.
        class_labels: see the module.
        num_images: completions of each image, 1 or more.
        rows: rows of the (finest) grid to keep, or a share of them between 0 and 1; None for codes that end where
            sampling begins.
        guess_class: take the class that makes the kept codes of an image the likeliest, instead of no class: a prior
            that is mostly trained with classes completes better with one. Costs a pass for each class. None does so
            with a prior of order any or masked where no class is given.
        hide: encode images without what is below the rows; with False the encoder sees it, and codes near the edge
            depend on it.
        options: see ``DrawOptions``.

    Returns:
        B * ``num_images`` images, the results of one image in a row.

    Raises:
        DataError, ConfigError: as a call; a number of rows that leaves nothing to keep or to sample.
    """
    settings = _settings(pipe, options, hide, guess_class, class_labels)
    guesses = _guesses(pipe, guess_class, class_labels)
    grid = grid_of(images, pipe.spec)
    spec = pipe.spec.of_grid(grid)
    if rows is None:
        expected, fix = "how many rows of the images are kept", "give rows, such as 0.5, or the codes to keep"
        ConfigError.unless(is_codes(images), "is missing", field="rows", expected=expected, fix=fix)
        first_BP = read_codes(images, spec).to(pipe.device)
        known_BT = first_BP.new_full((len(first_BP), spec.n_codes), MASKED)
        known_BT[:, : first_BP.shape[1]] = first_BP
    else:
        below_1YX = below_rows(rows, spec)
        known_BT = _keep(_given(pipe, images, below_1YX if hide else None, spec), below_1YX, spec)
    if guesses:
        class_labels = _likeliest_classes(pipe, known_BT, grid)
    return sample(pipe, _request(pipe, known_BT, class_labels, num_images, settings, grid, shared=True), settings)


@torch.no_grad()
def inpaint(
    pipe: BaseGenerator,
    images: Any,
    mask: Any,
    class_labels: Labels = None,
    num_images: int = 1,
    *,
    grow: int = 0,
    blend: int | None = None,
    guess_class: bool | None = None,
    hide: bool = True,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Sample the codes under a mask and keep the others.

    Args:
        pipe: the generator itself.
        images, class_labels: see the module.
        mask: what is sampled, white or True: a Pillow image, or (Y, X) or (B, Y, X) bool, uint8 or float for one or
            all images, of the pixels or of the finest grid. A code is sampled if the mask touches its block of pixels.
        num_images: results for each image, 1 or more.
        grow: pixels around the mask that are sampled too, 0 to 4,096.
        blend: put the given pixels back outside the mask; over this many pixels next to it they fade into the new ones,
            0 for a hard edge. None leaves the picture as the tokenizer decodes it.
        guess_class: take the class that makes the kept codes the likeliest, instead of none; with a prior of raster
            order the codes before the first sampled one. None does so with a prior of order any or masked where no
            class is given and codes are kept.
        hide: encode images without what is under the mask; with False codes around it depend on it.
        options: see ``DrawOptions``.

    Returns:
        B * ``num_images`` images, the results of one image in a row.

    Raises:
        DataError, ConfigError: as a call; a mask that does not fit or marks nothing.
    """
    settings = _settings(pipe, options, hide, guess_class, class_labels)
    for name, value in (("grow", grow), ("blend", 0 if blend is None else blend)):
        sound, expected = 0 <= whole(value) <= _MAX_REACH, f"0 to {_MAX_REACH}"
        ConfigError.unless(sound, "is not a number of pixels", field=name, found=shown(value), expected=expected)
    grid = grid_of(images, pipe.spec)
    spec = pipe.spec.of_grid(grid)
    mask_BYX = grown(pixel_mask(mask, spec), whole(grow))
    given = _given(pipe, images, mask_BYX if hide else None, spec)
    known_BT = _keep(given, mask_BYX, spec)
    if guess_class or (_guesses(pipe, guess_class, class_labels) and bool((known_BT >= 0).any(1).all())):
        class_labels = _likeliest_classes(pipe, known_BT, grid)
    request = _request(pipe, known_BT, class_labels, num_images, settings, grid, shared=len(mask_BYX) == 1)
    if blend is None:
        return sample(pipe, request, settings)
    if given.images_BCYX is None or settings.output_type == "latent":
        raise ConfigError("needs pixels", field="blend", found=blend, fix="give images, and ask for pictures")
    weights_B1YX = blend_weights(mask_BYX.to(pipe.device), whole(blend)).expand(len(known_BT), -1, -1, -1)
    codes_BT, seeds = draw_best(pipe.prior, request, settings.best_of, show_progress=pipe.shows_progress)
    codes = spec.grid(codes_BT)
    before, weights = (each.repeat_interleave(whole(num_images), 0) for each in (given.images_BCYX, weights_B1YX))
    blended = before.lerp(pipe.decode(codes, settings.batch_size), weights)
    pictures = to_output_type(blended, settings.output_type, pipe.tokenizer.preview)
    return GeneratorOutput(pictures, codes, pipe.without_null(request.labels), seeds)


@torch.no_grad()
def vary(
    pipe: BaseGenerator,
    images: Any,
    share: float,
    class_labels: Labels = None,
    num_images: int = 1,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Sample a share of the codes of images, at positions that each result's seed chooses.

    Args:
        pipe: the generator itself.
        images, class_labels: see the module.
        share: of the positions of the grid, above 0 and up to 1.
        num_images: variations of each image, 1 or more.
        options: see ``DrawOptions``.

    Returns:
        B * ``num_images`` images, the variations of one image in a row.

    Raises:
        DataError, ConfigError: as a call; a share outside its range.
    """
    settings = pipe.settings(options)
    n_all = _n_positions(pipe.spec)
    n_sampled = _part_of(n_all, share)
    grid = grid_of(images, pipe.spec)
    codes_BT = _given(pipe, images, None, pipe.spec.of_grid(grid)).codes_BP
    request = _request(pipe, codes_BT, class_labels, num_images, settings, grid, shared=False)
    assert request.known_BT is not None
    chosen = [permutation(n_all, "vary", seed)[:n_sampled] for seed in request.seeds]
    request.known_BT.masked_fill_(_codes_at(np.stack(chosen), pipe.spec).to(pipe.device), MASKED)
    # the seed of a chosen candidate would choose other positions
    return dataclasses.replace(sample(pipe, request, settings), seeds=request.seeds)


@torch.no_grad()
def change_class(
    pipe: BaseGenerator,
    images: Any,
    class_labels: Labels,
    num_images: int = 1,
    *,
    share: float = 0.5,
    **options: Unpack[DrawOptions],
) -> GeneratorOutput:
    """Sample the codes that fit a new class worst, and keep the structure that the others hold.

    A code fits badly where the class makes it less likely than no class does: log p(code | class, codes before) -
    log p(code | codes before) is the pointwise mutual information of the two. The share with the least of it is
    sampled; of a prior without a null class, the share with the least log p(code | class, codes before).

    Args:
        pipe: the generator itself.
        images: see the module.
        class_labels: the new class, or one for each image.
        num_images: results for each image, 1 or more.
        share: of the codes, above 0 and up to 1.
        options: see ``DrawOptions``.

    Returns:
        B * ``num_images`` images, the results of one image in a row.

    Raises:
        DataError, ConfigError: as a call; no class, or a share outside its range.
    """
    settings, expected = pipe.settings(options), "the new class of the images"
    ConfigError.unless(class_labels is not None, "is missing", field="class_labels", expected=expected)
    n_codes = _part_of(pipe.spec.n_codes, share)
    grid = grid_of(images, pipe.spec)
    codes_BT = _given(pipe, images, None, pipe.spec.of_grid(grid)).codes_BP
    labels = _label_of_each(pipe, class_labels, len(codes_BT))
    pipe.require_memory(len(labels) * count("num_images", num_images), settings)
    misfit_BT = nats_of_codes(pipe.prior, codes_BT, labels, grid)
    if pipe.label_dropout != 0:
        misfit_BT -= nats_of_codes(pipe.prior, codes_BT, [pipe.prior.null_class] * len(labels), grid)
    worst_BN = misfit_BT.argsort(dim=1, descending=True, stable=True)[:, :n_codes]
    known_BT = codes_BT.scatter(1, worst_BN, MASKED)
    return sample(pipe, _request(pipe, known_BT, class_labels, num_images, settings, grid, shared=False), settings)


def _settings(
    pipe: BaseGenerator, options: DrawOptions, hide: bool, guess_class: bool | None, class_labels: Labels
) -> DrawSettings:
    """The settings of a call that encodes images and may guess their classes."""
    settings = pipe.settings(options)
    require_flag("hide", hide)
    if guess_class is not None:
        require_flag("guess_class", guess_class)
    if guess_class and not (class_labels is None and pipe.labels):
        problem = "has no effect: " + ("the class is given" if pipe.labels else "this prior knows no classes")
        raise ConfigError(problem, field="guess_class", found=guess_class, fix="leave it out")
    return settings


def _guesses(pipe: BaseGenerator, guess_class: bool | None, class_labels: Labels) -> bool:
    """Whether the class is guessed, as ``guess_class`` says or by the kind of prior."""
    knows_all = pipe.prior.config.order in ("any", "masked") and bool(pipe.labels) and class_labels is None
    return knows_all if guess_class is None else guess_class


def _likeliest_classes(pipe: BaseGenerator, known_BT: torch.Tensor, grid: int) -> list[int]:
    """The class that makes the kept codes of each image the likeliest, all classes alike before; with a prior of raster
    order, the codes before the first sampled one.
    """
    if pipe.prior.config.order in ("any", "masked"):
        return _likeliest_by_all(pipe, known_BT, grid)
    n_first_B = _n_first(known_BT).tolist()
    problem = "needs codes at the beginning"
    ConfigError.unless(min(n_first_B) > 0, problem, field="guess_class", found="none", expected="some")
    classes = range(pipe.prior.n_classes)
    likeliest = [0] * len(known_BT)
    for n_first in set(n_first_B):
        rows = [i for i, n in enumerate(n_first_B) if n == n_first]
        first_BP = known_BT[torch.tensor(rows, device=known_BT.device), :n_first]
        nats_BK = torch.stack([nats_of(pipe.prior, first_BP, [label] * len(rows), grid) for label in classes], 1)
        for row, label in zip(rows, nats_BK.argmin(1).tolist(), strict=True):
            likeliest[row] = label
    return likeliest


def _likeliest_by_all(pipe: BaseGenerator, known_BT: torch.Tensor, grid: int) -> list[int]:
    problem = "needs kept codes"
    ConfigError.unless(bool((known_BT >= 0).any(1).all()), problem, field="guess_class", found="none", expected="some")
    grids_B = torch.full_like(known_BT[:, 0], grid) if pipe.prior.n_grids > 1 else None
    classes = [torch.full_like(known_BT[:, 0], label) for label in range(pipe.prior.n_classes)]
    nats_BK = torch.stack([nats_of_known(pipe.prior, known_BT, label_B, grids_B) for label_B in classes], 1)
    likeliest: list[int] = nats_BK.argmin(1).tolist()
    return likeliest


def _given(pipe: BaseGenerator, images: Any, hidden_BYX: torch.Tensor | None, spec: CodeSpec) -> Given:
    """Given images of one shape, of which ``spec`` is."""
    given = read_given(images, pipe.tokenizer, spec, pipe.device, hidden_BYX)
    found, expected = given.codes_BP.shape[1], pipe.spec.n_codes
    DataError.unless(found == expected, "are not all codes of an image", field="images", found=found, expected=expected)
    return given


def _keep(given: Given, mask_BYX: torch.Tensor, spec: CodeSpec) -> torch.Tensor:
    """The given codes, -1 where a mask touches them, (B, T)."""
    require_one_or_all("mask", len(mask_BYX), len(given.codes_BP))
    return given.codes_BP.masked_fill(codes_of_pixels(mask_BYX, spec).to(given.codes_BP.device), MASKED)


def _label_of_each(pipe: BaseGenerator, class_labels: Labels, n_images: int) -> list[int]:
    labels = pipe.label_ids(class_labels)
    require_one_or_all("class_labels", len(labels), n_images)
    return labels * n_images if len(labels) == 1 else labels


def _request(
    pipe: BaseGenerator,
    known_BT: torch.Tensor,
    class_labels: Labels,
    num_images: int,
    settings: DrawSettings,
    grid: int,
    *,
    shared: bool,
) -> SampleRequest:
    """``num_images`` results of each image; ``shared`` says that all have the same positions known."""
    n = count("num_images", num_images)
    pipe.require_memory(len(known_BT) * n, settings)
    labels = [label for label in _label_of_each(pipe, class_labels, len(known_BT)) for _ in range(n)]
    pipe.require_guided(labels, settings)
    return SampleRequest(
        labels=labels,
        seeds=settings.seeds(len(labels)),
        sampling=settings.sampling,
        start=int(_n_first(known_BT[:1])) if shared else 0,
        known_BT=known_BT.repeat_interleave(n, 0),
        max_rows=settings.batch_size,
        grid=grid,
    )


def _n_first(known_BT: torch.Tensor) -> torch.Tensor:
    """How many known codes each image begins with, (B,)."""
    return (known_BT >= 0).long().cumprod(1).sum(1)


def blend_weights(mask_BYX: torch.Tensor, reach: int) -> torch.Tensor:
    """The share of the new pixels: 1 under the mask, 0 farther than ``reach`` from it, (B, 1, Y, X).

    In between it falls in equal steps with the distance, the larger of rows and columns.
    """
    sums = torch.stack([grown(mask_BYX, distance).float() for distance in range(reach + 1)]).sum(0)
    return (sums / (reach + 1)).unsqueeze(1)


def _part_of(n: int, share: object) -> int:
    """A share of n, rounded, 1 or more."""
    number = float(share) if isinstance(share, (int, float)) and not isinstance(share, bool) else 0.0
    sound = 0 < number <= 1
    ConfigError.unless(sound, "is not a share", field="share", found=shown(share), expected="above 0 and up to 1")
    return max(1, round(number * n))


def _n_positions(spec: CodeSpec) -> int:
    return sum(level.height * level.width for level in spec.levels)


def _codes_at(positions_BN: np.ndarray, spec: CodeSpec) -> torch.Tensor:
    """The codes of all depths at positions, which are numbered level by level, row by row: (B, T) bool."""
    chosen_BP = np.zeros((len(positions_BN), _n_positions(spec)), bool)
    np.put_along_axis(chosen_BP, positions_BN, True, 1)
    depth_P = np.concatenate([np.full(level.height * level.width, level.depth) for level in spec.levels])
    return torch.from_numpy(chosen_BP.repeat(depth_P, 1))
