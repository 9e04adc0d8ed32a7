"""New images: sample codes from the prior, decode them with the tokenizer."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from foundation.codes import require_same_codes
from foundation.config import from_dict, to_dict
from foundation.errors import CheckpointError, ConfigError, DataError, nearest
from foundation.images import to_pil, to_uint8
from foundation.json_files import read_json
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decode import sample_codes, stream_uniforms
from stage2_prior.prior import PriorModel
from stage2_prior.sampling import SamplingConfig

INDEX = "model_index.json"
Label = int | str
OnStep = Callable[["ImageGenerator", int, torch.Tensor], None]


@dataclass(frozen=True)
class GeneratorOutput:
    """New images.

    Attributes:
        images: a list of Pillow images ("pil"), (B, Y, X, C) float32 in [0, 1] ("np"), (B, C, Y, X) float32 in
            [-1, 1] ("pt"), or the codes ("latent").
        codes: int64, as the tokenizer's: (B, H, W), (B, H, W, D) for depth D, or (B, T) for several levels.
        labels: the class number of each image, None for none.
        seeds: the seed of each image; the same seed and label give the same image.
    """

    images: Any
    codes: torch.Tensor
    labels: list[int | None]
    seeds: list[int]


class ImageGenerator:
    """A tokenizer and a prior that belong together.

    >>> generator = ImageGenerator.from_pretrained("runs/digits")  # doctest: +SKIP
    >>> generator(class_labels=["3", "7"], seed=0).images[0].save("three.png")  # doctest: +SKIP

    Args:
        tokenizer: decodes; its fingerprint must be the one the prior was trained on.
        prior: draws codes.
        defaults: sampling settings used where a call names none.
    """

    def __init__(self, tokenizer: TokenizerModel, prior: PriorModel, defaults: SamplingConfig | None = None) -> None:
        require_same_codes(prior.spec, tokenizer.spec, owner="the prior", other="the tokenizer")
        self.tokenizer, self.prior = tokenizer.eval(), prior.eval()
        self.defaults = defaults or SamplingConfig()
        self._show_progress = True

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ImageGenerator:
        """Open a run folder, or a model repository's name on the hub.

        Raises:
            CheckpointError: no such run, an unfinished one, or a damaged part.
            ContractError: the parts do not belong together.
        """
        root = _local_folder(folder)
        index = read_json(root / INDEX, ("sampling",), fix="run tessera run again: it is made anew")
        defaults = from_dict(SamplingConfig, index["sampling"], "sampling")
        return cls(TokenizerModel.load(root / "tokenizer"), PriorModel.load(root / "prior"), defaults)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both parts and the index into a new folder that ``from_pretrained`` opens."""
        from foundation import durable

        def fill(temporary: Path) -> None:
            for name, part in self.components.items():
                (temporary / name).mkdir()
                part.save(temporary / name)
            (temporary / INDEX).write_text(index_text(self.defaults))

        durable.publish_folder(Path(folder), fill)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""
        return {"tokenizer": self.tokenizer, "prior": self.prior}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.prior.head.weight.device

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> class number; empty for an unconditional prior."""
        return {name: i for i, name in enumerate(self.prior.spec.class_names[: self.prior.n_classes])}

    def to(self, device: str | torch.device) -> ImageGenerator:
        """Move both parts; returns itself."""
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    def set_progress_bar_config(self, *, disable: bool = False) -> None:
        """Show or hide the progress bar."""
        self._show_progress = not disable

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Label | Sequence[Label] | None = None,
        num_images_per_label: int = 1,
        *,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] | None = None,
        batch_size: int = 100,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        callback_on_step_end: OnStep | None = None,
    ) -> GeneratorOutput:
        """Draw images.

        Args:
            class_labels: a class number or name, several of them, or None for no class.
            num_images_per_label: images of each, 1 or more.
            guidance_scale, temperature, top_k, top_p: see ``SamplingConfig``; None takes the run's default.
            seed: image i is drawn with seed + i, or with its own number from a list; None draws a random one.
            batch_size: images sampled at once; an image does not depend on it.
            output_type: see ``GeneratorOutput.images``.
            callback_on_step_end: called with (generator, step, codes of the batch at that step).

        Raises:
            DataError: an unknown class, or classes asked of an unconditional prior.
            ConfigError: a sampling value outside its range.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ConfigError("is not one of the choices", field="output_type", found=repr(output_type),
                              fix=nearest(str(output_type), ["pil", "np", "pt", "latent"]))  # fmt: skip
        _require_count("num_images_per_label", num_images_per_label)
        _require_count("batch_size", batch_size)
        labels = [each for each in self.label_ids(class_labels) for _ in range(num_images_per_label)]
        seeds = _seeds(seed, len(labels))
        given = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        sampling = from_dict(SamplingConfig, {**to_dict(self.defaults), **changes})
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ConfigError("cannot be called", field="callback_on_step_end", found=repr(callback_on_step_end))
        codes = self._sample(labels, seeds, sampling, batch_size, callback_on_step_end)
        images = codes if output_type == "latent" else self._decode(codes, batch_size, output_type)
        return GeneratorOutput(images, codes, [None if x == self.prior.null_class else x for x in labels], seeds)

    def label_ids(self, class_labels: Label | Sequence[Label] | None) -> list[int]:
        """Class numbers of names or numbers; ``None`` becomes the null class."""
        if class_labels is None:
            return [self.prior.null_class]
        single = isinstance(class_labels, (int, str)) or not isinstance(class_labels, Iterable)
        labels: list[Any] = [class_labels] if single or getattr(class_labels, "ndim", 1) == 0 else list(class_labels)  # type: ignore[arg-type]
        if not labels:
            raise DataError("is empty", field="class_labels", expected="a class, several, or None for no class")
        if not self.labels:
            raise DataError("this prior knows no classes", field="class_labels", found=class_labels,
                            fix="leave class_labels out: it generates without a class")  # fmt: skip
        return [self._label_id(label) for label in labels]

    def _label_id(self, label: Any) -> int:
        if isinstance(label, str) and label in self.labels:
            return self.labels[label]
        number = int(label) if isinstance(label, str) and label.isdecimal() else _whole(label, -1)
        if not 0 <= number < len(self.labels):
            raise DataError(
                "no such class",
                field="class_labels",
                found=repr(label),
                expected=f"a number in 0..{len(self.labels) - 1} or a name",
                fix=nearest(str(label), self.labels),
            )
        return number

    def _sample(
        self, labels: list[int], seeds: list[int], sampling: SamplingConfig, batch_size: int, callback: OnStep | None
    ) -> torch.Tensor:
        parts = []
        total = len(labels) * self.prior.n_codes
        with tqdm(total=total, desc="sampling", unit="code", delay=2, disable=not self._show_progress) as progress:

            def on_code(step: int, codes_B: torch.Tensor) -> None:
                progress.update(len(codes_B))
                if callback is not None:
                    callback(self, step, codes_B)

            for start in range(0, len(labels), batch_size):
                part = slice(start, start + batch_size)
                labels_B = torch.tensor(labels[part], device=self.device)
                uniforms_BT = stream_uniforms(seeds[part], self.prior.n_codes)
                parts.append(sample_codes(self.prior, labels_B, uniforms_BT, sampling, on_code))
        return self.prior.spec.grid(torch.cat(parts))

    def _decode(self, codes: torch.Tensor, batch_size: int, output_type: str) -> Any:
        images = torch.cat([self.tokenizer.decode(part) for part in codes.split(batch_size)])
        if output_type == "pt":
            return images.clamp(-1, 1)
        pixels = to_uint8(images)
        if output_type == "np":
            return pixels.astype(np.float32) / 255
        return [to_pil(each) for each in pixels]


def index_text(sampling: SamplingConfig) -> str:
    """``model_index.json``: the parts, their classes, the sampling defaults."""
    index = {
        "_class_name": "ImageGenerator",
        "tokenizer": ["stage1_tokenizer", "Tokenizer"],
        "prior": ["stage2_prior", "Prior"],
        "sampling": to_dict(sampling),
    }
    return json.dumps(index, indent=1)


def grid_image(images: list[Image.Image], n_columns: int) -> Image.Image:
    """Images side by side, enlarged so that small ones can be seen."""
    from foundation.images import image_grid

    first = images[0]
    pixels = np.stack([np.asarray(each).reshape(each.height, each.width, -1) for each in images])
    return image_grid(pixels, n_columns, scale=max(1, 64 // max(first.size)))


def _local_folder(folder: str | Path) -> Path:
    root = Path(folder)
    if (root / INDEX).is_file():
        return root
    if root.is_dir():
        raise CheckpointError("the run is not finished: it has no model_index.json", field=str(folder),
                              fix="run tessera run again; it continues where it stopped")  # fmt: skip
    if root.is_absolute() or str(folder).startswith(".") or str(folder).count("/") != 1 or root.parent.is_dir():
        raise CheckpointError("no such folder", field=str(folder), fix="give a run folder, e.g. runs/digits")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(str(folder)))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(f"is neither a folder nor a model on the hub: {error}", field=str(folder)) from error


def _whole(value: Any, default: int) -> int:
    """A Python, NumPy or torch whole number as ``int``; ``default`` for anything else, True and False included."""
    try:
        return default if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return default


def _require_count(name: str, value: object) -> None:
    if _whole(value, 0) < 1:
        raise ConfigError("has a value that cannot work", field=name, found=repr(value), expected="1 or more")


def _seeds(seed: Any, n: int) -> list[int]:
    if seed is None:
        seed = int(torch.randint(2**31, ()).item())
    first = _whole(seed, -1)
    if first < 0 and isinstance(seed, Iterable) and not isinstance(seed, str):
        seeds = [_whole(each, -1) for each in seed]
    else:
        seeds = [first + i for i in range(n)]
    if first < 0 and (len(seeds) != n or any(each < 0 for each in seeds)):
        raise ConfigError("is not a seed", field="seed", found=repr(seed),
                          expected=f"a whole number from 0, or a list of {n} of them, one for each image")  # fmt: skip
    return seeds
