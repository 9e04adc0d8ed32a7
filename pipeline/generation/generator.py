"""New images: sample codes from the prior, decode them with the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from foundation.errors import ConfigError
from foundation.storage import durable
from pipeline.generation.drawing import Order, draw
from pipeline.generation.editing import Editing
from pipeline.generation.files import INDEX, GeneratorIndex, local_folder, read_index
from pipeline.generation.inputs import Images
from pipeline.generation.interpolation import Interpolating
from pipeline.generation.likelihood import Unit, score_images
from pipeline.generation.options import DrawOptions
from pipeline.generation.outputs import GeneratorOutput
from pipeline.generation.parts import Label
from pipeline.generation.requests import Request
from pipeline.generation.streaming import PartialImages, RowWatcher, Streaming
from pipeline.generation.wide import draw_wide, wide_grid
from stage1_tokenizer.canary import check_canary_quickly, copy_canary
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decoding.decode import DecodedCode
from stage2_prior.prior import PriorModel

OnStep = Callable[["ImageGenerator", int, torch.Tensor], None]
OnRow = Callable[["ImageGenerator", PartialImages], None]


class ImageGenerator(Editing, Interpolating, Streaming):
    """A tokenizer and a prior that belong together.

    >>> generator = ImageGenerator.from_pretrained("runs/digits")  # doctest: +SKIP
    >>> generator(class_labels=["3", "7"], seed=0).images[0].save("three.png")  # doctest: +SKIP

    Args:
        tokenizer, prior, defaults, label_dropout: see ``GeneratorParts``.
    """

    _home: Path | None = None
    """the folder that it was opened from"""

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ImageGenerator:
        """Open a run folder, or a model repository's name on the hub.

        Raises:
            CheckpointError: no such run, an unfinished one, or a damaged part.
            ContractError: the parts do not belong together.
        """
        root = local_folder(folder)
        index = read_index(root)
        tokenizer, prior = TokenizerModel.load(root / "tokenizer"), PriorModel.load(root / "prior")
        check_canary_quickly(tokenizer, root / "tokenizer")
        generator = cls(tokenizer, prior, index.sampling, label_dropout=index.label_dropout)
        generator._home = root
        return generator

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both parts and the index into a new folder that ``from_pretrained`` opens."""

        def fill(temporary: Path) -> None:
            for name, part in self.components.items():
                (temporary / name).mkdir()
                part.save(temporary / name)
            if self._home is not None:
                copy_canary(self._home / "tokenizer", temporary / "tokenizer")
            (temporary / INDEX).write_text(GeneratorIndex(self.defaults, self.label_dropout).text())

        durable.publish_folder(Path(folder), fill)

    def to(self, device: str | torch.device) -> ImageGenerator:
        """Move both parts; returns itself."""
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    def compile(self) -> ImageGenerator:
        """Draw codes with a compiled step, which pays on a GPU and for many images; returns itself.

        The first images take tens of seconds more, and numbers differ by rounding from those without.
        """
        self.prior.compile_decoding()
        return self

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Label | Sequence[Label] | None = None,
        num_images_per_label: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: OnStep | None = None,
        callback_on_row: OnRow | None = None,
        **options: Unpack[DrawOptions],
    ) -> GeneratorOutput:
        """Draw images.

        Args:
            class_labels: a class number or name, several of them, or None for no class.
            num_images_per_label: images of each, 1 or more.
            height, width: of the images in pixels, multiples of the stride; larger than trained, the prior's window
                slides over the image. None takes the trained size.
            callback_on_step_end: called with (generator, step, codes of the batch at that step).
            callback_on_row: called with (generator, ``PartialImages``) after each row of the grid.
            options: seed, best_of, batch_size, output_type (see ``DrawOptions``), and guidance_scale, temperature,
                top_k, top_p, schedule and the other fields of ``SamplingConfig``; None takes the run's default.

        Raises:
            DataError: an unknown class, classes asked of an unconditional prior, or more images than fit in memory.
            ConfigError: a value outside its range, an unknown option, or options that exclude each other.
        """
        request, order = self.order_of(class_labels, num_images_per_label, options)
        callbacks = {"callback_on_step_end": callback_on_step_end, "callback_on_row": callback_on_row}
        for name, callback in callbacks.items():
            if callback is not None and not callable(callback):
                raise ConfigError("cannot be called", field=name, found=repr(callback)[:200])
        grid = wide_grid(self.spec, height, width)
        named = next((name for name, callback in callbacks.items() if callback is not None), None)
        if named is not None and (request.best_of > 1 or grid is not None):
            raise ConfigError("cannot be used with best_of or a larger image", field=named, fix="leave one of them out")
        if grid is not None:
            return self._wide(order, request, grid)
        if named is None:
            return self.drawn(order, request)
        codes_BT = draw(self.prior, order, on_step=self._told(callback_on_step_end, callback_on_row),
                        show_progress=self.shows_progress)  # fmt: skip
        return self.output(codes_BT, order.labels, order.seeds, request)

    def score(
        self, images: Images, class_labels: Label | Sequence[Label] | None = None, *, unit: Unit = "bits"
    ) -> torch.Tensor:
        """Log-likelihood of each image's codes, log2 p or, for "nats", ln p: (B,) float64, 0 or less.

        Args:
            images: a Pillow image, a list of them, (B, C, Y, X) in [-1, 1] of the tokenizer's size, or all their codes.
            class_labels: one of all images, one for each, or None for the null class (see ``score_images``).
            unit: bits or nats.

        Raises:
            DataError, ConfigError: see ``score_images``; no class, of a prior that was trained with classes alone.
        """
        labels = self.label_ids(class_labels)
        self.require_labels(labels)
        return score_images(self.tokenizer, self.prior, images, labels, unit=unit)

    def _told(self, on_step: OnStep | None, on_row: OnRow | None) -> Callable[[DecodedCode], None]:
        watcher = RowWatcher(self)

        def tell(step: DecodedCode) -> None:
            if on_step is not None:
                on_step(self, step.position, step.codes_B)
            part = None if on_row is None else watcher.see(step)
            if on_row is not None and part is not None:
                on_row(self, part)

        return tell

    def _wide(self, order: Order, request: Request, grid: tuple[int, int]) -> GeneratorOutput:
        if request.best_of > 1:
            raise ConfigError("needs images of the trained size", field="best_of", found=request.best_of, expected=1)
        self.require_room(len(order.labels), request, grid[0] * grid[1] * self.spec.levels[0].depth)
        codes = draw_wide(self.prior, order, grid, show_progress=self.shows_progress)
        images: Any = codes if request.output_type == "latent" else self.decode(codes, request)
        labels = [None if label == self.prior.null_class else label for label in order.labels]
        return GeneratorOutput(images, codes, labels, order.seeds)
