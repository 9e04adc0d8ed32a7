"""The image generator: a prior samples codes, a tokenizer decodes them to images."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import torch

from foundation.arguments import as_path
from foundation.errors import ConfigError, nearest
from foundation.hardware import DEVICES, best_device, usable_device
from foundation.storage import durable
from pipeline.generation import editing, interpolation, likelihood, streaming
from pipeline.generation.base import Aspect, BaseGenerator, Labels, NoTokenizer, output_of, request_of, sample
from pipeline.generation.drawing import OnStep, SampleRequest, draw
from pipeline.generation.files import INDEX, GeneratorIndex, local_folder, read_index, upload_folder
from pipeline.generation.options import DrawOptions
from pipeline.generation.outputs import GeneratorOutput
from pipeline.generation.requests import DrawSettings, require_flag, shown, whole
from pipeline.generation.streaming import CALLBACK_TENSORS, OnRow, OnStepEnd, step_callback
from pipeline.generation.wide import draw_wide, wide_grid
from stage1_tokenizer.canary import check_canary_quickly, copy_canary
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel

Device = str | int | torch.device
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ImageGenerator(BaseGenerator):
    """Pipeline of a tokenizer and a prior: generation, editing, interpolation and likelihood of images.

    >>> generator = ImageGenerator.from_pretrained("runs/digits")  # doctest: +SKIP
    >>> generator(class_labels=["3", "7"], seed=0).images[0].save("three.png")  # doctest: +SKIP

    Args:
        tokenizer, prior, defaults, label_dropout, grid_counts: see ``BaseGenerator``.
    """

    _callback_tensor_inputs = CALLBACK_TENSORS
    _home: Path | None = None
    """the folder that it was opened from"""

    # functions of (pipe, ...), each in the file of its topic
    complete = editing.complete
    inpaint = editing.inpaint
    vary = editing.vary
    change_class = editing.change_class
    interpolate = interpolation.interpolate
    stream = streaming.stream
    score = likelihood.score

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Device | None = None,
        revision: str | None = None,
    ) -> Self:
        """Open a run folder, or a model repository on the hub.

        Args:
            folder: the run folder, or the repository's name.
            torch_dtype: of the prior's weights, see ``to``; None and "auto" take that of the files, float32.
            device_map: where to compute: a device, or "auto" for the accelerator if there is one; None is the CPU.
            revision: branch, tag or commit of the repository.

        Raises:
            CheckpointError: no such run, an unfinished one, or a damaged model.
            ContractError: the models do not belong together.
            ConfigError: a device that this machine does not have, an unknown dtype, or a revision of a folder.
        """
        device = None if device_map is None else _usable(device_map)
        unset = torch_dtype is None or (isinstance(torch_dtype, str) and torch_dtype == "auto")
        dtype = None if unset else _dtype(torch_dtype, "torch_dtype")
        root = local_folder(folder, revision)
        index = read_index(root)
        prior = PriorModel.load(root / "prior")
        tokenizer = TokenizerModel.load(root / "tokenizer") if index.has_tokenizer else NoTokenizer(prior.spec)
        if isinstance(tokenizer, TokenizerModel):
            check_canary_quickly(tokenizer, root / "tokenizer")
        generator = cls(
            tokenizer, prior, index.sampling, label_dropout=index.label_dropout, grid_counts=index.grid_counts
        )
        generator._home = root
        return generator.to(device=device, dtype=dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both models and the index into a new folder that ``from_pretrained`` opens.

        Raises:
            StorageError: the folder exists, or the disk refused.
            ConfigError: not a path.
        """
        models = self.components
        index = GeneratorIndex(
            self.defaults, self.label_dropout, has_tokenizer="tokenizer" in models, grid_counts=self.grid_counts
        )

        def fill(temporary: Path) -> None:
            for name, model in models.items():
                (temporary / name).mkdir()
                model.save(temporary / name)
            if self._home is not None and (temporary / "tokenizer").is_dir():
                copy_canary(self._home / "tokenizer", temporary / "tokenizer")
            durable.write_bytes(temporary / INDEX, index.text().encode())

        durable.publish_folder(as_path(folder, "folder"), fill)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a generator",
    ) -> str:
        """Upload what ``save_pretrained`` writes to a model repository on the hub.

        Args:
            repo_id: ``owner/name``; it is made if there is none.
            private: whether a repository that is made is private; None takes the owner's default.
            token: of the hub; None takes the one that ``hf auth login`` stored.
            commit_message: of the commit.

        Returns:
            The commit's address.

        Raises:
            StorageError: the hub refused, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "generator"
            self.save_pretrained(folder)
            return upload_folder(folder, repo_id, private=private, token=token, message=commit_message)

    def to(self, *given: Device | torch.dtype, device: Device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move both models to a device, and cast the prior's weights to a dtype; returns itself.

        The tokenizer stays float32: codes are rounded in float32, and its fingerprint is that of its weights.

        Args:
            given: a device, a dtype, or both in any order.
            device, dtype: the same by name; None leaves it as it is.

        Raises:
            ConfigError: a device that this machine does not have, an unknown dtype, or one of them given twice.
        """
        dtypes: list[Any] = [each for each in (*given, dtype) if isinstance(each, torch.dtype)]
        devices: list[Any] = [each for each in given if not isinstance(each, torch.dtype)]
        dtypes += [] if dtype is None or isinstance(dtype, torch.dtype) else [dtype]
        devices += [] if device is None else [device]
        for name, found in (("device", devices), ("dtype", dtypes)):
            expected = f"one {name}"
            ConfigError.unless(len(found) < 2, "is given more than once", field=name, found=found, expected=expected)
        targets: list[Any] = [
            *map(_usable, devices),
            *(_dtype(each, "dtype") for each in dtypes),
        ]  # all checked before any moves
        for target in targets:
            self.prior.to(target)
            if not isinstance(target, torch.dtype):
                self.tokenizer.to(target)
        return self

    def compile(self) -> Self:
        """Sample codes with a compiled step, faster on a GPU and for many images; returns itself.

        The first images take tens of seconds more. Numbers differ by rounding from those without.
        """
        self.prior.compile_decoding()
        return self

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels = None,
        num_images_per_label: int = 1,
        *,
        aspect: Aspect = None,
        height: int | None = None,
        width: int | None = None,
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
        callback_on_row: OnRow | None = None,
        **options: Unpack[DrawOptions],
    ) -> GeneratorOutput:
        """Generate images.

        Args:
            class_labels: a class number or name, several of them, or None for no class.
            num_images_per_label: images of each label, 1 or more.
            aspect: shape of the images, of a generator of several: "16:9" (width to height), "portrait", "landscape",
                "square", (height, width) in pixels or an index into ``shapes``; None takes the first.
            height, width: of the images in pixels, multiples of the stride; larger than trained, the prior's window
                slides over the image. None takes the trained size.
            return_dict: False returns the output's tuple (images, codes, labels, seeds).
            callback_on_step_end: called as ``callback(pipe, step, t, tensors)`` after each code of a batch; ``step``
                and ``t`` are its position in the sequence, 0 to T - 1. It returns None, or a dict of tensors by the
                same names, of which ``codes`` replaces the codes just sampled: all later ones are sampled given them.
            callback_on_step_end_tensor_inputs: which tensors it gets: ``codes``, the codes just sampled, and ``rows``,
                which images of the call they belong to; both (B,) int64.
            callback_on_row: called with (pipe, ``PartialImages``) after each row of the grid.
            options: seed or generator, best_of, batch_size, output_type (see ``DrawOptions``), and guidance_scale,
                temperature, top_k, top_p, schedule and the other fields of ``SamplingConfig``; None takes the run's
                default.

        Returns:
            The images, label by label; also their codes, labels and seeds.

        Raises:
            DataError: an unknown class, classes asked of an unconditional prior, or more images than fit in memory.
            ConfigError: a value outside its range, an unknown option, or options that exclude each other.
        """
        require_flag("return_dict", return_dict)
        request, settings = request_of(self, class_labels, num_images_per_label, options, aspect)
        sides = whole(height), whole(width)
        if aspect is None and sides in self.shapes:
            request = dataclasses.replace(request, grid=self.shapes.index(sides))
        spec = self.spec.of_grid(request.grid)
        grid = None if height is None and width is None else wide_grid(spec, height, width)
        callbacks = {"callback_on_step_end": callback_on_step_end, "callback_on_row": callback_on_row}
        given = {name: callback for name, callback in callbacks.items() if callback is not None}
        alone, problem = settings.best_of == 1 and grid is None, "cannot be used with best_of or a larger image"
        for name, callback in given.items():
            ConfigError.unless(callable(callback), "cannot be called", field=name, found=shown(callback))
            ConfigError.unless(alone, problem, field=name, fix="leave one out")
        inputs, on_step = callback_on_step_end_tensor_inputs, None
        if given or inputs != ("codes",):
            on_step = step_callback(self, callback_on_step_end, inputs, callback_on_row, spec)
        if grid is None and not given:
            output = sample(self, request, settings)
        else:
            codes = self._codes(request, settings, grid, on_step)
            output = output_of(self, codes, request.labels, request.seeds, settings)
        return output if return_dict else output.to_tuple()  # type: ignore[return-value]  # as the ecosystem has it

    def _codes(
        self, request: SampleRequest, settings: DrawSettings, grid: tuple[int, int] | None, on_step: OnStep | None
    ) -> torch.Tensor:
        """Codes of a larger image, or of the trained size with callbacks, in the tokenizer's layout."""
        if grid is None:
            codes_BT = draw(self.prior, request, on_step=on_step, show_progress=self.shows_progress)
            return self.spec.grid(codes_BT, request.grid)
        best_of = settings.best_of
        ConfigError.unless(best_of == 1, "needs images of the trained size", field="best_of", found=best_of, expected=1)
        self.require_memory(len(request.labels), settings, grid[0] * grid[1] * self.spec.levels[0].depth)
        return draw_wide(self.prior, request, grid, show_progress=self.shows_progress)


def _usable(device: Any) -> str:
    """A device's name, if this machine has it.

    Raises:
        ConfigError: it does not, or it is no device.
    """
    known = isinstance(device, (str, torch.device, int)) and not isinstance(device, bool)
    ConfigError.unless(known, "is not a device", field="device", found=shown(device), expected=DEVICES)
    name = f"{best_device()}:{device}" if isinstance(device, int) else str(device)
    return usable_device(name, field="device", announce=False)


def _dtype(value: Any, field: str) -> torch.dtype:
    dtype = _DTYPES.get(value) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES.values():
        found, fix = shown(value), nearest(str(value).removeprefix("torch."), _DTYPES)
        raise ConfigError("is not a dtype of weights", field=field, found=found, fix=fix)
    return dtype
