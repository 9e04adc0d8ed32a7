"""Images while they are being drawn: row by row, as an iterator or through a callback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch

from foundation.errors import ConfigError
from pipeline.generation.drawing import Order, steps
from pipeline.generation.options import OUTPUT_TYPES, DrawOptions
from pipeline.generation.outputs import decode_batch, decoded, pictures
from pipeline.generation.parts import GeneratorParts, Label
from pipeline.generation.requests import require_choice
from stage2_prior.decoding.decode import DRAW, DecodedCode


@dataclass(frozen=True)
class PartialImages:
    """A batch of images of which the first rows are finished.

    Attributes:
        images: which images of the call these are.
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

    def pictures(self, output_type: str = "pil") -> Any:
        """What there is of the images, grey below.

        Rows that are still to be drawn are decoded as copies of the last finished one and then made grey, so that the
        finished rows look as they will, but for those next to the edge.

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
        images_BCYX = decoded(self.parts.tokenizer, codes, decode_batch(self.parts.n_pixels))
        images_BCYX[:, :, self.n_done * spec.preprocess.height // self.n_rows :] = 0.0
        return pictures(images_BCYX, output_type)


class RowWatcher:
    """Gathers the codes of a batch and says when a row of it is finished."""

    def __init__(self, parts: GeneratorParts) -> None:
        self._parts, finest = parts, parts.spec.levels[-1]
        self._before, self._n_rows = parts.spec.n_codes - finest.n_codes, finest.height
        self._per_row = finest.n_codes // finest.height
        self._codes_BT = torch.empty(0, parts.spec.n_codes, dtype=torch.int64)
        self._images = slice(-1, -1)

    def see(self, step: DecodedCode) -> PartialImages | None:
        """Take in a step; the batch, if a row of it is now finished."""
        if step.rows != self._images:
            self._images = step.rows
            shape = (len(step.codes_B), self._parts.spec.n_codes)
            self._codes_BT = step.codes_B.new_full(shape, DRAW)
        self._codes_BT[:, step.position] = step.codes_B
        n_done, rest = divmod(step.position + 1 - self._before, self._per_row)
        if n_done < 1 or rest:
            return None
        codes = self._parts.spec.grid(self._codes_BT.clone())
        return PartialImages(self._images, n_done, self._n_rows, codes, self._parts)


class Streaming(GeneratorParts):
    """``stream``."""

    def stream(
        self,
        class_labels: Label | Sequence[Label] | None = None,
        num_images_per_label: int = 1,
        **options: Unpack[DrawOptions],
    ) -> Iterator[PartialImages]:
        """The images of a call with the same arguments, each row as soon as it is drawn.

        >>> for part in generator.stream("3", seed=0):  # doctest: +SKIP
        ...     part.pictures()[0].save(f"row-{part.n_done}.png")

        Batches follow each other: all rows of the first, then of the next. Whoever has seen enough stops the loop; what
        follows is not computed.

        Args:
            class_labels, num_images_per_label: as of a call.
            options: see ``DrawOptions``; ``best_of`` and ``output_type`` have no place here.

        Raises:
            DataError, ConfigError: as a call, and before the first image.
        """
        request, order = self.order_of(class_labels, num_images_per_label, options)
        if request.best_of > 1:
            raise ConfigError("cannot be shown while it is drawn", field="best_of", found=request.best_of, expected=1,
                              fix="which candidate is kept is known only at the end")  # fmt: skip
        return self._rows(order)

    def _rows(self, order: Order) -> Iterator[PartialImages]:
        watcher = RowWatcher(self)
        for step in steps(self.prior, order):
            part = watcher.see(step)
            if part is not None:
                yield part
