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
from pipeline.generation.options import OUTPUT_TYPES, DrawOptions
from pipeline.generation.outputs import to_output_type
from pipeline.generation.requests import require_choice, shown
from stage2_prior.decoding.decode import MASKED, DecodedCode

CALLBACK_TENSORS = ("codes", "rows")
OnStepEnd = Callable[[Any, int, int, dict[str, torch.Tensor]], Mapping[str, Any] | None]
OnRow = Callable[[Any, "PartialImages"], None]


@dataclass(frozen=True)
class PartialImages:
    """A batch of images of which the first rows are finished.

    Attributes:
        images: positions of these images in the call.
        n_done, n_rows: rows of the (finest) grid that are finished, from 1, and all of them.
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
        """The finished rows as Pillow images, grey below."""
        return self.decode("pil")

    def decode(self, output_type: str) -> Any:
        """The finished rows as images of some output type, grey below.

        Unfinished rows are decoded as copies of the last finished one and then made grey, so that all finished rows but
        the last look as in the finished image.

        Args:
            output_type: pil, np (or numpy), pt or latent, see ``GeneratorOutput.images``.

        Raises:
            ConfigError: another output type.
        """
        require_choice("output_type", output_type, OUTPUT_TYPES)
        if output_type == "latent":
            return self.codes
        spec = self.spec
        *coarse, finest = spec.split(self.codes.flatten(1).clone())
        finest[:, self.n_done :] = finest[:, self.n_done - 1 : self.n_done]
        codes = spec.grid(spec.join([*coarse, finest]))
        images_BCYX = self.generator.decode(codes)
        images_BCYX[:, :, self.n_done * spec.preprocess.height // self.n_rows :] = 0.0
        return to_output_type(
            images_BCYX, "np" if output_type == "numpy" else output_type, self.generator.tokenizer.preview
        )


class RowWatcher:
    """Gathers the codes of a batch, row by row of the finest grid.

    Args:
        pipe: that samples them.
        spec: of images of their shape.
    """

    def __init__(self, pipe: BaseGenerator, spec: CodeSpec) -> None:
        self._pipe, self._spec, self._finest, self._images = pipe, spec, spec.levels[-1], slice(-1, -1)
        self._codes_BT = torch.empty(0, spec.n_codes, dtype=torch.int64)

    def see(self, step: DecodedCode) -> PartialImages | None:
        """Take in a step; returns the batch if this step finishes a row of it."""
        if step.rows != self._images:
            self._images = step.rows
            self._codes_BT = step.codes_B.new_full((len(step.codes_B), self._spec.n_codes), MASKED)
        self._codes_BT[:, step.position] = step.codes_B
        n_rows, n_before = self._finest.height, self._codes_BT.shape[1] - self._finest.n_codes
        n_done, rest = divmod(step.position + 1 - n_before, self._finest.n_codes // n_rows)
        if n_done < 1 or rest:
            return None
        codes = self._spec.grid(self._codes_BT.clone())
        return PartialImages(self._images, n_done, n_rows, codes, self._pipe, self._spec)


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

    def on_step(step: DecodedCode) -> None:
        if on_step_end is not None:
            device = step.codes_B.device
            tensors = {"codes": step.codes_B, "rows": torch.arange(step.rows.start, step.rows.stop, device=device)}
            given = {name: tensors[name].clone() for name in tensor_inputs}
            returned = on_step_end(pipe, step.position, step.position, given)
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


def _replace_codes(pipe: BaseGenerator, step: DecodedCode, codes: Any) -> None:
    """Write what a callback returned into a step.

    Raises:
        DataError: another type or shape, or a code outside the codebook.
    """
    n_codes, field = int(pipe.prior.position_tables.size_T[step.position]), "callback_on_step_end: codes"
    expected = f"({len(step.codes_B)},) int64 from 0 to {n_codes - 1}"
    if not isinstance(codes, torch.Tensor) or codes.shape != step.codes_B.shape or codes.dtype != torch.int64:
        found = (tuple(codes.shape), codes.dtype) if isinstance(codes, torch.Tensor) else type(codes).__name__
        raise DataError("are not codes", field=field, found=found, expected=expected)
    least, most = int(codes.min()), int(codes.max())
    DataError.unless(0 <= least <= most < n_codes, "do not exist", field=field, found=(least, most), expected=expected)
    step.codes_B.copy_(codes)
