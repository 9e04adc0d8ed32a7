"""Images while they are drawn: row by row, as an iterator or through callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch

from foundation.errors import ConfigError, DataError
from pipeline.generation.drawing import OnStep, SampleRequest, steps
from pipeline.generation.options import OUTPUT_TYPES, DrawOptions
from pipeline.generation.outputs import decode, decode_batch, to_output_type
from pipeline.generation.parts import GeneratorParts, Labels, request_of
from pipeline.generation.requests import require_choice
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
        codes: int64, as ``GeneratorOutput.codes``, with -1 where a code is still to be drawn.
        parts: the generator.
    """

    images: slice
    n_done: int
    n_rows: int
    codes: torch.Tensor
    parts: GeneratorParts

    @property
    def is_last(self) -> bool:
        """Whether these images are finished."""
        return self.n_done == self.n_rows

    def to_pil(self) -> Any:
        """The finished rows as Pillow images, grey below."""
        return self.decode("pil")

    def decode(self, output_type: str) -> Any:
        """The finished rows as images of some output type, grey below.

        Rows that are still to be drawn are decoded as copies of the last finished one and then made grey, so that all
        finished rows but the last look as in the finished image.

        Args:
            output_type: as of a call.
        """
        require_choice("output_type", output_type, OUTPUT_TYPES)
        if output_type == "latent":
            return self.codes
        spec = self.parts.spec
        *coarse, finest = spec.split(self.codes.flatten(1).clone())
        finest[:, self.n_done :] = finest[:, self.n_done - 1 : self.n_done]
        codes = spec.grid(spec.join([*coarse, finest]))
        images_BCYX = decode(self.parts.tokenizer, codes, decode_batch(self.parts.n_pixels))
        images_BCYX[:, :, self.n_done * spec.preprocess.height // self.n_rows :] = 0.0
        return to_output_type(images_BCYX, "np" if output_type == "numpy" else output_type)


class RowWatcher:
    """Gathers the codes of a batch, row by row of the finest grid."""

    def __init__(self, parts: GeneratorParts) -> None:
        self._parts, finest = parts, parts.spec.levels[-1]
        self._before, self._n_rows = parts.spec.n_codes - finest.n_codes, finest.height
        self._per_row = finest.n_codes // finest.height
        self._codes_BT = torch.empty(0, parts.spec.n_codes, dtype=torch.int64)
        self._images = slice(-1, -1)

    def see(self, step: DecodedCode) -> PartialImages | None:
        """Take in a step; returns the batch if this step finishes a row of it."""
        if step.rows != self._images:
            self._images = step.rows
            self._codes_BT = step.codes_B.new_full((len(step.codes_B), self._parts.spec.n_codes), MASKED)
        self._codes_BT[:, step.position] = step.codes_B
        n_done, rest = divmod(step.position + 1 - self._before, self._per_row)
        if n_done < 1 or rest:
            return None
        codes = self._parts.spec.grid(self._codes_BT.clone())
        return PartialImages(self._images, n_done, self._n_rows, codes, self._parts)


def stream(
    parts: GeneratorParts, class_labels: Labels = None, num_images_per_label: int = 1, **options: Unpack[DrawOptions]
) -> Iterator[PartialImages]:
    """The images of a call with the same arguments, each row as soon as it is drawn.

    >>> for part in generator.stream("3", seed=0):  # doctest: +SKIP
    ...     part.to_pil()[0].save(f"row-{part.n_done}.png")

    All rows of the first batch come first, then those of the next. Lazy: stop iterating to stop computing.

    Args:
        parts: the generator.
        class_labels, num_images_per_label: as of a call.
        options: see ``DrawOptions``; ``best_of`` and ``output_type`` have no effect here.

    Raises:
        DataError, ConfigError: as a call, and before the first image.
    """
    request, settings = request_of(parts, class_labels, num_images_per_label, options)
    if settings.best_of > 1:
        fix = "the choice among candidates is made at the end"
        raise ConfigError("cannot be streamed", field="best_of", found=settings.best_of, expected=1, fix=fix)
    return _rows(parts, request)


def _rows(parts: GeneratorParts, request: SampleRequest) -> Iterator[PartialImages]:
    watcher = RowWatcher(parts)
    for step in steps(parts.prior, request):
        part = watcher.see(step)
        if part is not None:
            yield part


def step_callback(
    parts: GeneratorParts, on_step_end: OnStepEnd | None, tensor_inputs: Sequence[str], on_row: OnRow | None
) -> OnStep:
    """Call ``on_step_end`` after each step, and ``on_row`` after each row; see ``ImageGenerator.__call__``.

    Raises:
        ConfigError: a tensor that is not in ``CALLBACK_TENSORS``.
    """
    _require_tensors("callback_on_step_end_tensor_inputs", tensor_inputs, CALLBACK_TENSORS)
    watcher = RowWatcher(parts)

    def on_step(step: DecodedCode) -> None:
        if on_step_end is not None:
            device = step.codes_B.device
            tensors = {"codes": step.codes_B, "rows": torch.arange(step.rows.start, step.rows.stop, device=device)}
            given = {name: tensors[name].clone() for name in tensor_inputs}
            returned = on_step_end(parts, step.position, step.position, given)
            _require_tensors("callback_on_step_end", {} if returned is None else returned, tuple(tensor_inputs))
            if returned and "codes" in returned:
                _replace_codes(parts, step, returned["codes"])
        part = None if on_row is None else watcher.see(step)
        if on_row is not None and part is not None:
            on_row(parts, part)

    return on_step


def _require_tensors(field: str, names: object, known: tuple[str, ...]) -> None:
    if not isinstance(names, (list, tuple, dict)):
        raise ConfigError("has the wrong type", field=field, found=repr(names)[:200], expected=f"names of {known}")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ConfigError("names no tensor of a step", field=field, found=repr(name)[:200], expected=known)


def _replace_codes(parts: GeneratorParts, step: DecodedCode, codes: Any) -> None:
    """Write what a callback returned into a step.

    Raises:
        DataError: another type or shape, or a code outside the codebook.
    """
    n_codes = int(parts.prior.position_tables.size_T[step.position])
    expected = f"({len(step.codes_B)},) int64 from 0 to {n_codes - 1}"
    if not isinstance(codes, torch.Tensor) or codes.shape != step.codes_B.shape or codes.dtype != torch.int64:
        found = (tuple(codes.shape), codes.dtype) if isinstance(codes, torch.Tensor) else type(codes).__name__
        raise DataError("are not codes", field="callback_on_step_end: codes", found=found, expected=expected)
    if not bool(((codes >= 0) & (codes < n_codes)).all()):
        found = f"{int(codes.min())}..{int(codes.max())}"
        raise DataError("do not exist", field="callback_on_step_end: codes", found=found, expected=expected)
    step.codes_B.copy_(codes)
