"""Images during sampling: row by row, as an iterator or through callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch

from foundation.codes.spec import CodeSpec
from foundation.errors import ConfigError, DataError
from pipeline.generation.base import Aspect, BaseGenerator, Labels, request_of
from pipeline.generation.drawing import OnStep, steps
from pipeline.generation.inputs import hide
from pipeline.generation.options import OUTPUT_TYPES, DrawOptions
from pipeline.generation.outputs import to_output_type
from pipeline.generation.requests import require_choice, shown
from stage2_prior.decoding.batch import DecodedCodes
from stage2_prior.orders import MASKED

CALLBACK_TENSORS = ("codes", "positions", "rows")
OnStepEnd = Callable[[Any, int, int, dict[str, torch.Tensor]], Mapping[str, Any] | None]
OnRow = Callable[[Any, "PartialImages"], None]


@dataclass(frozen=True)
class PartialImages:
    """A batch of images of which the first rows are finished, or in another order of codes, that share of all codes.

    Attributes:
        images: positions of these images in the call.
        n_done, n_rows: rows of the (finest) grid that are finished, from 1, and all of them. In another order than
            raster: as many ``n_rows``-ths of the codes.
        codes: int64, as ``GeneratorOutput.codes``, with -1 where a code is not sampled yet.
        generator: that samples them.
        spec: of their grid of codes.
    """

    images: slice
    n_done: int
    n_rows: int
    codes: torch.Tensor
    generator: BaseGenerator
    spec: CodeSpec

    @property
    def is_last(self) -> bool:
        """Whether these images are finished."""
        return self.n_done == self.n_rows

    def to_pil(self) -> Any:
        """What is finished as Pillow images, grey elsewhere."""
        return self.decode("pil")

    def decode(self, output_type: str) -> Any:
        """What is finished as images of some output type, grey elsewhere.

        Unknown codes are decoded as copies of the nearest finished one and then made grey, so that what has finished
        neighbours looks as in the finished image.

        Args:
            output_type: pil, np (or numpy), pt or latent, see ``GeneratorOutput.images``.

        Raises:
            ConfigError: another output type.
        """
        require_choice("output_type", output_type, OUTPUT_TYPES)
        if output_type == "latent":
            return self.codes
        spec = self.spec
        levels = spec.split(self.codes.flatten(1))
        codes = spec.grid(spec.join([_filled(level) for level in levels]))
        images_BCYX = self.generator.decode(codes)
        finest_BHW = (levels[-1] < 0).flatten(3).any(3) if levels[-1].ndim > 3 else levels[-1] < 0
        hidden_BYX = finest_BHW.repeat_interleave(spec.stride, 1).repeat_interleave(spec.stride, 2)
        images_BCYX.masked_fill_(hidden_BYX.unsqueeze(1).to(images_BCYX.device), 0.0)
        return to_output_type(
            images_BCYX, "np" if output_type == "numpy" else output_type, self.generator.tokenizer.preview
        )


class RowWatcher:
    """Gathers the codes of a batch: row by row of the finest grid, or in another order share by share.

    Args:
        pipe: that samples them.
        spec: of images of their shape.
    """

    def __init__(self, pipe: BaseGenerator, spec: CodeSpec) -> None:
        self._pipe, self._spec, self._finest, self._images = pipe, spec, spec.levels[-1], slice(-1, -1)
        self._codes_BT, self._known = torch.empty(0, spec.n_codes, dtype=torch.int64), 0
        self._per_row = self._finest.n_codes // self._finest.height

    def see(self, step: DecodedCodes) -> PartialImages | None:
        """Take in a pass; returns the batch if this pass finishes a row of it, or as large a share of its codes."""
        if step.rows != self._images:
            n_images = len(step.codes_BK)
            self._images, self._known = step.rows, 0
            self._codes_BT = step.codes_BK.new_full((n_images, self._spec.n_codes), MASKED)
        self._codes_BT.scatter_(1, step.positions_BK, step.codes_BK)
        n_rows, n_known = self._finest.height, self._n_known()
        n_before, self._known = self._known, n_known
        if n_known // self._per_row <= n_before // self._per_row or n_known < self._per_row:
            return None
        codes = self._spec.grid(self._codes_BT.clone())
        return PartialImages(self._images, n_known // self._per_row, n_rows, codes, self._pipe, self._spec)

    def _n_known(self) -> int:
        """Known codes of the finest grid, of the image with the fewest."""
        return int((self._codes_BT[:, -self._finest.n_codes :] >= 0).sum(1).min())


def _filled(codes_BHW: torch.Tensor) -> torch.Tensor:
    """Codes of a level with unknown ones replaced by the nearest known one, 0 if there is none."""
    codes = codes_BHW.unsqueeze(-1) if codes_BHW.ndim == 3 else codes_BHW
    images = codes.permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(1)
    filled = hide(images, images[:, 0] < 0).view(len(codes), codes.shape[3], *codes.shape[1:3]).permute(0, 2, 3, 1)
    return filled.reshape(codes_BHW.shape)


def stream(
    pipe: BaseGenerator,
    class_labels: Labels = None,
    num_images_per_label: int = 1,
    *,
    aspect: Aspect = None,
    **options: Unpack[DrawOptions],
) -> Iterator[PartialImages]:
    """The images of a call with the same arguments, each row as soon as it is sampled.

    >>> for part in generator.stream("3", seed=0):  # doctest: +SKIP
    ...     part.to_pil()[0].save(f"row-{part.n_done}.png")

    All rows of the first batch come first, then all of the next. Lazy: stop iterating to stop computing.

    Args:
        pipe: the generator itself.
        class_labels, num_images_per_label, aspect: as of a call.
        options: see ``DrawOptions``; ``best_of`` and ``output_type`` have no effect here.

    Raises:
        DataError, ConfigError: as a call, and before the first image.
    """
    request, settings = request_of(pipe, class_labels, num_images_per_label, options, aspect)
    best_of, fix = settings.best_of, "the choice among candidates is made at the end"
    ConfigError.unless(best_of == 1, "cannot be streamed", field="best_of", found=best_of, expected=1, fix=fix)
    watcher = RowWatcher(pipe, pipe.spec.of_grid(request.grid))
    return (part for step in steps(pipe.prior, request) if (part := watcher.see(step)) is not None)


def step_callback(
    pipe: BaseGenerator,
    on_step_end: OnStepEnd | None,
    tensor_inputs: Sequence[str],
    on_row: OnRow | None,
    spec: CodeSpec,
) -> OnStep:
    """Call ``on_step_end`` after each step, and ``on_row`` after each row; see ``ImageGenerator.__call__``.

    ``spec`` is that of images of the call's shape.

    Raises:
        ConfigError: a tensor that is not in ``CALLBACK_TENSORS``.
    """
    _require_tensors("callback_on_step_end_tensor_inputs", tensor_inputs, CALLBACK_TENSORS)
    watcher = RowWatcher(pipe, spec)

    def on_step(step: DecodedCodes) -> None:
        if on_step_end is not None:
            device = step.codes_BK.device
            codes = step.codes_BK.squeeze(1)
            tensors = {
                "codes": codes,
                "positions": step.positions_BK.view_as(codes),
                "rows": torch.arange(step.rows.start, step.rows.stop, device=device),
            }
            given = {name: tensors[name].clone() for name in tensor_inputs}
            returned = on_step_end(pipe, step.step, step.step, given)
            _require_tensors("callback_on_step_end", {} if returned is None else returned, tuple(tensor_inputs))
            if returned and "codes" in returned:
                _replace_codes(pipe, step, returned["codes"])
        if on_row is not None and (part := watcher.see(step)) is not None:
            on_row(pipe, part)

    return on_step


def _require_tensors(field: str, names: object, known: tuple[str, ...]) -> None:
    if not isinstance(names, (list, tuple, dict)):
        raise ConfigError("has the wrong type", field=field, found=shown(names), expected=f"names of {known}")
    for name in names:
        right = isinstance(name, str) and name in known
        ConfigError.unless(right, "names no tensor of a step", field=field, found=shown(name), expected=known)


def _replace_codes(pipe: BaseGenerator, step: DecodedCodes, codes: Any) -> None:
    """Write what a callback returned into a pass.

    Raises:
        DataError: another type or shape, or a code outside the codebook.
    """
    size_BK = pipe.prior.sizes_on(step.codes_BK.device)[step.positions_BK]
    shape, field = step.codes_BK.squeeze(1).shape, "callback_on_step_end: codes"
    expected = f"{tuple(shape)} int64 from 0 to {int(size_BK.min()) - 1}"
    if not isinstance(codes, torch.Tensor) or codes.shape != shape or codes.dtype != torch.int64:
        found = (tuple(codes.shape), codes.dtype) if isinstance(codes, torch.Tensor) else type(codes).__name__
        raise DataError("are not codes", field=field, found=found, expected=expected)
    codes_BK = codes.view_as(step.codes_BK).to(step.codes_BK.device)
    sound, limits = bool(((codes_BK >= 0) & (codes_BK < size_BK)).all()), (int(codes.min()), int(codes.max()))
    DataError.unless(sound, "do not exist", field=field, found=limits, expected=expected)
    step.codes_BK.copy_(codes_BK)
