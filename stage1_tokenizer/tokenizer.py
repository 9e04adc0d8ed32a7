"""The tokenizer, images <-> grids of codes, as a plain torch module; ``hub.py`` wraps it for transformers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.arguments import as_codes, as_images, as_path, require_type, shown
from foundation.codes.latents import N_CODES, codes_of, latents_of
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.config import digest, from_dict, require, to_dict
from foundation.config_fields import without_defaults
from foundation.errors import CheckpointError, ConfigError, ContractError, DataError, TrainingError
from foundation.images.config import Preprocess
from foundation.images.preview import Preview, Stretch
from foundation.images.shapes import equal_shapes, propose_shapes
from foundation.storage import durable
from foundation.storage.serialization import REPAIR, load_model_folder, load_weights, save_model_folder, tensors_sha256
from foundation.training.learner import micro_batches
from foundation.training.parallel import all_reduce_sum
from stage1_tokenizer.bottleneck import Coded, build_bottleneck
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.parts import CodesOf, coding_sha256
from stage1_tokenizer.quantizers import Quantizer

MODEL_TYPE = "tessera_tokenizer"
_MAX_SIDE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Coded):
    """Result of a forward pass: codes, latents and losses of the bottleneck, and the reconstruction.

    Attributes:
        images_BCYX: not clamped.
        inputs_BCHW: the decoder's input, quantized latents after the projection.
    """

    images_BCYX: torch.Tensor
    inputs_BCHW: torch.Tensor


class TokenizerModel(nn.Module):
    """Encoder, bottleneck, decoder.

    Codes are one tensor: (B, H, W) int64, or (B, H, W, D) for D codes at each position, or the sequence (B, T) where
    there are two grids. A continuous tokenizer (Gaussian latent) has (B, C, H, W) float32 latents instead.

    Args:
        config: the architecture.
        preprocess: how images become pixels; part of what the codes mean.

    Attributes:
        codes_of: the tokenizer whose codes these are, if the decoder alone was trained since; else None.
        stretch: which values previews of its images show as black and white; no part of the fingerprint.
    """

    def __init__(self, config: TokenizerConfig, preprocess: Preprocess) -> None:
        super().__init__()
        require_type("config", config, TokenizerConfig)
        require_type("preprocess", preprocess, Preprocess)
        _require_divisible(config, preprocess)
        self.config, self.preprocess = config, preprocess
        self.codes_of: CodesOf | None = None
        self.stretch = Stretch()
        self.encoder = config.networks.build_encoder(preprocess.n_channels, config.encoder_channels)
        self.bottleneck = build_bottleneck(config)
        self.decoder = config.networks.build_decoder(config.latent_channels, preprocess.n_channels)

    def forward(self, images_BCYX: torch.Tensor) -> Reconstruction:
        """Reconstruct; everything that training differentiates passes through here."""
        inputs, coded = self.bottleneck(self.features(images_BCYX))
        return Reconstruction(images_BCYX=self.decoder(inputs).float(), inputs_BCHW=inputs, **vars(coded))

    def features(self, images_BCYX: Any) -> torch.Tensor:
        """Images in [-1, 1] => (B, encoder_channels, H, W), the encoder's output.

        Args:
            images_BCYX: (B, C, Y, X), a tensor on the model's device or a NumPy array, of any floating point type.

        Raises:
            DataError: another type, sides that are not multiples of the stride, or another number of channels.
        """
        images_BCYX = self.as_images(images_BCYX)
        self._require_multiples("images", *images_BCYX.shape[2:])
        features: torch.Tensor = self.encoder(images_BCYX)
        return features

    def as_images(self, images_BCYX: Any) -> torch.Tensor:
        """Images as the encoder takes them: its type, its device, (B, C, Y, X).

        Raises:
            DataError: something else than a batch of images with this number of channels, or another device.
        """
        weight = next(self.parameters())
        return as_images(images_BCYX, self.preprocess.n_channels, dtype=weight.dtype, device=weight.device)

    @torch.no_grad()
    def encode(self, images_BCYX: Any) -> torch.Tensor:
        """Pixels in [-1, 1] => codes.

        Raises:
            DataError: as ``features``; values that are not finite, or outside [-1, 1].
        """
        images_BCYX = self.as_images(images_BCYX)
        features = self.features(images_BCYX)
        _require_pixels(images_BCYX)
        return self.bottleneck.encode(features)

    def tokens(self, images_BCYX: Any) -> torch.Tensor:
        """Pixels in [-1, 1] => the codes of ``spec`` in one sequence, (B, T) int64; a latent's bits are its codes.

        Raises:
            DataError: as ``encode``; latents beyond float16.
        """
        codes = self.encode(images_BCYX)
        return (codes if self.is_discrete else codes_of(codes)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Any, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Codes => pixels, (B, C, Y, X), nominally in [-1, 1] but not clamped.

        Args:
            codes: of any integer type, a tensor on the model's device or a NumPy array, such as ``TokenDataset.grids``,
                in the layout that ``encode`` returns; of a continuous tokenizer (B, C, H, W) floating point latents, or
                (B, H, W, C) codes, see ``tokens``.
            image_size: (Y, X) of the images; needed only for two grids of another size than the preprocess's. None
                takes the size of one grid as it is.

        Raises:
            DataError: a code outside the codebook, another layout, or another number of codes than the image size has.
            ConfigError: an image size that is not two positive whole numbers.
        """
        grid = self._grid(image_size)
        if self.is_discrete:
            codes = self._as_codes(codes, grid, is_sized=image_size is not None)
        elif _are_whole(codes):
            codes = latents_of(self._as_codes(codes, grid, is_sized=image_size is not None))
        else:
            codes = as_images(
                codes, self.bottleneck.quantizer.width, "codes", device=next(self.parameters()).device, values=""
            )
            finite = bool(codes.isfinite().all())
            DataError.unless(finite, "hold values that are not finite", field="codes", expected="finite latents")
        images: torch.Tensor = self.decoder(self.bottleneck.decode(codes, grid)).float()
        return images

    @torch.no_grad()
    def initialize(
        self, images_BCYX: torch.Tensor, generator: torch.Generator, micro_batch_size: int | None = None
    ) -> None:
        """Initialise projections and codebooks from the first batch of all processes.

        Args:
            images_BCYX: as ``features`` takes them.
            generator: of what is drawn.
            micro_batch_size: most images that the encoder takes at once; None takes all.

        Raises:
            TrainingError: on every process, if values of the batch or of its features on one are not finite: nothing
                that is made of them could be taken back.
        """
        parts = [self.features(part) for part in micro_batches(images_BCYX, micro_batch_size)]
        features = parts[0] if len(parts) == 1 else torch.cat(parts)
        for field, values in (("images", images_BCYX), ("the encoder's features", features)):
            n_bad = int(all_reduce_sum((~values.isfinite()).sum()))
            if n_bad:
                fix = "correct the images; if they are sound, use precision: float32"
                what = "the first batch holds values that are not finite"
                raise TrainingError(what, field=field, found=f"{n_bad:,} of them", expected="finite numbers", fix=fix)
        self.bottleneck.start(features, generator)

    @torch.no_grad()
    def code_vectors(self) -> torch.Tensor:
        """(V, C) float32: what the quantizer makes of each code; of a tokenizer with one codebook.

        Raises:
            ContractError: it has several codebooks, or none.
        """
        (level, *others), quantizer = self.levels, self.quantizers[0]
        n_slots = sum(each.depth for each in (level, *others))
        what, fix = "a code has no single vector", "use a tokenizer with one codebook"
        ContractError.unless(n_slots == 1, what, field="quantizer", found=f"{n_slots} codebooks", expected=1, fix=fix)
        codes_V11 = torch.arange(quantizer.codebook_size, device=next(self.parameters()).device).view(-1, 1, 1)
        return quantizer.decode(codes_V11).flatten(1)

    @property
    def preview(self) -> Preview:
        """Shows its images and reconstructions, whatever their channels and bits."""
        return Preview(self.preprocess, self.stretch)

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """One for each grid, coarse to fine."""
        return self.bottleneck.quantizers

    @property
    def is_discrete(self) -> bool:
        """Whether it makes codes; a Gaussian latent is continuous."""
        return self.config.is_discrete

    @property
    def levels(self) -> tuple[CodeLevel, ...]:
        """The grids of an image of the configured size; a latent has a depth for each channel."""
        return self._levels(self._grid(None))

    @property
    def layout(self) -> CodeSpec:
        """``spec`` without the fingerprint, which takes time to compute."""
        return CodeSpec(
            levels=self.levels,
            stride=self.config.stride,
            preprocess=self.preprocess,
            fingerprint="",
            latents=not self.is_discrete,
        )

    @property
    def spec(self) -> CodeSpec:
        """What the codes of an image of the configured size are. Computes hashes of the weights."""
        first = self.codes_of
        same = first is not None and first.coding_sha256 == self.coding_sha256
        return dataclasses.replace(self.layout, fingerprint=first.fingerprint if first and same else self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the weights."""
        config = from_dict(TokenizerConfig, to_dict(self.config))  # 0 in a float field becomes 0.0, as after loading
        settings = digest({"config": without_defaults(config), "preprocess": without_defaults(self.preprocess)})
        return hashlib.sha256(f"{settings}|{tensors_sha256(self.state_dict())}".encode()).hexdigest()

    @property
    def coding_sha256(self) -> str:
        """SHA-256 over what decides the codes, all but the decoder."""
        return coding_sha256(self.config, self.preprocess, self.state_dict())

    def save(self, folder: Path) -> None:
        """Fill an empty folder that ``load`` and ``Tokenizer.from_pretrained`` open."""
        settings = {"tokenizer": to_dict(self.config), "preprocess": to_dict(self.preprocess)}
        if self.codes_of is not None:
            settings["codes_of"] = to_dict(self.codes_of)
        if self.stretch != Stretch():
            settings["preview"] = to_dict(self.stretch)
        save_model_folder(folder, self, MODEL_TYPE, "Tokenizer", {**settings, "fingerprint": self.fingerprint})
        spec = json.dumps(to_dict(self.spec), indent=1, sort_keys=True)
        durable.write_bytes(folder / "code_spec.json", spec.encode())

    @classmethod
    def load(cls, folder: str | Path) -> TokenizerModel:
        """Open a folder that ``save`` filled; the model is in evaluation mode.

        Raises:
            CheckpointError: the folder is missing, damaged, not a tokenizer, or its weights were changed.
        """
        settings, tensors = load_model_folder(
            as_path(folder, "folder"), MODEL_TYPE, ("tokenizer", "preprocess", "fingerprint")
        )
        model = cls.from_settings(settings)
        load_weights(model, tensors, str(folder))
        if model.fingerprint != settings["fingerprint"]:
            raise CheckpointError("the settings were changed after saving", field=str(folder), fix=REPAIR)
        return model.eval()

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> TokenizerModel:
        """Build from the entries of a ``config.json``; weights are random."""
        config = from_dict(TokenizerConfig, settings["tokenizer"], "tokenizer")
        model = cls(config, from_dict(Preprocess, settings["preprocess"], "preprocess"))
        first, preview = settings.get("codes_of"), settings.get("preview")
        model.stretch = Stretch() if preview is None else from_dict(Stretch, preview, "preview")
        model.codes_of = None if first is None else from_dict(CodesOf, first, "codes_of")
        return model

    def _levels(self, grid: tuple[int, int]) -> tuple[CodeLevel, ...]:
        if self.is_discrete:
            return self.bottleneck.levels(*grid)
        height, width = grid
        return (CodeLevel(height=height, width=width, codebook_size=N_CODES, depth=self.quantizers[0].width),)

    def _grid(self, image_size: tuple[int, int] | None) -> tuple[int, int]:
        height, width = (self.preprocess.height, self.preprocess.width) if image_size is None else _sides(image_size)
        self._require_multiples("image_size", height, width)
        return height // self.config.stride, width // self.config.stride

    def _require_multiples(self, field: str, height: int, width: int) -> None:
        multiple, found = self.config.side_multiple, f"{height} x {width}"
        fits = height % multiple == width % multiple == 0
        what, expected = "sides are not multiples of the stride", f"multiples of {multiple}"
        DataError.unless(fits, what, field=field, found=found, expected=expected, fix="crop or pad the images")

    def _as_codes(self, given: Any, grid: tuple[int, int], *, is_sized: bool) -> torch.Tensor:
        levels = self._levels(grid)
        several, depth = len(levels) > 1, levels[0].depth
        n_codes = sum(level.n_codes for level in levels)
        layout = f"(B, {n_codes})" if several else "(B, H, W)" if depth == 1 else f"(B, H, W, {depth})"
        n_axes = 2 if several else 3 + (depth > 1)
        codes = as_codes(given, "codes", next(self.parameters()).device, expected=layout)
        sound = codes.ndim == n_axes and codes.numel() > 0
        found, expected = str(tuple(codes.shape)), layout
        flat = codes.ndim == 2 and not several
        fix = "tokenizer.layout.grid(codes) makes grids of flat sequences" if flat else None
        DataError.unless(
            sound, "are not this tokenizer's codes", field="codes", found=found, expected=expected, fix=fix
        )
        same = depth == 1 or several or codes.shape[3] == depth
        DataError.unless(same, "another depth", field="codes", found=codes.shape[-1], expected=depth)
        what, fix = "another number of codes than the image has", "give image_size where it is not the preprocess's"
        sides = tuple(codes.shape[1:2] if several else codes.shape[1:3])
        same = sides == ((n_codes,) if several else grid) or not (several or is_sized)
        expected = layout if several else f"{grid}, rows and columns of the image_size that is given"
        DataError.unless(same, what, field="codes", found=sides, expected=expected, fix=fix)
        self._require_inside(codes, levels)
        return codes

    def _require_inside(self, codes: torch.Tensor, levels: tuple[CodeLevel, ...]) -> None:
        low, high, sizes = int(codes.min()), int(codes.max()), sorted({size for each in levels for size in each.sizes})
        inside = low >= 0 and high < sizes[0]
        if not inside and low >= 0 and high < sizes[-1]:  # each depth, or level, has a codebook of its own size
            tiled = [each.sizes * (each.height * each.width) for each in levels]
            limits = levels[0].sizes if len(levels) == 1 else [size for part in tiled for size in part]
            inside = bool((codes < torch.tensor(limits, device=codes.device)).all())
        found, expected = f"{low}..{high}", " and ".join(f"0..{size - 1}" for size in sizes)
        DataError.unless(inside, "codes outside the codebook", field="codes", found=found, expected=expected)


def _are_whole(codes: Any) -> bool:
    """Whether these are codes, not latents."""
    if isinstance(codes, torch.Tensor):
        return not codes.is_floating_point() and not codes.is_complex()
    return getattr(getattr(codes, "dtype", None), "kind", "f") in "iu"


def _sides(image_size: Any) -> tuple[int, int]:
    """Height and width as given, two positive whole numbers."""
    try:
        height, width = (operator.index(each) for each in image_size)
    except (TypeError, ValueError, RuntimeError):
        height = width = 0
    if not 0 < min(height, width) <= max(height, width) <= _MAX_SIDE:
        found, expected = shown(image_size), f"(height, width) in pixels, up to {_MAX_SIDE:,}"
        raise ConfigError("is not a size of images", field="image_size", found=found, expected=expected)
    return height, width


def _require_pixels(images_BCYX: torch.Tensor) -> None:
    low, high = (float(each) for each in images_BCYX.aminmax())
    found, expected = f"{low:.4g}..{high:.4g}", "values in [-1, 1]"
    finite, fix = math.isfinite(low) and math.isfinite(high), "find the image with torch.isfinite"
    what = "holds values that are not finite"
    DataError.unless(finite, what, field="images", found=found, expected=expected, fix=fix)
    inside, fix = max(-low, high) <= 1.001, "use tokenizer.preprocess and to_unit_range"
    what = "holds values outside the range"
    DataError.unless(inside, what, field="images", found=found, expected=expected, fix=fix)


def _require_divisible(config: TokenizerConfig, preprocess: Preprocess) -> None:
    multiple, one_grid = config.side_multiple, not config.coarse_halvings
    expected, fix = "[] for a tokenizer of two grids", "choose a tokenizer of one grid: coarse_halvings 0"
    require(one_grid or not preprocess.shapes, "data.preprocess.shapes", list(preprocess.shapes), expected, fix)
    named = [("height", preprocess.height), ("width", preprocess.width)]
    named += [(f"shapes[{i}]", side) for i, shape in enumerate(preprocess.shapes) for side in shape]
    for name, side in named:
        if side % multiple:
            lower = side // multiple * multiple
            choices = f"{lower} or {lower + multiple}" if lower else str(multiple)
            if preprocess.shapes:
                like = equal_shapes(preprocess.height, preprocess.width, multiple)
                like = like or propose_shapes(preprocess.height * preprocess.width, multiple)
                choices = f"shapes such as {', '.join(f'{height} x {width}' for height, width in like)}"
            raise ConfigError(
                "is not divisible by the tokenizer's stride",
                field=f"data.preprocess.{name}",
                found=side,
                expected=f"a multiple of {multiple}",
                fix=f"use {choices}, or fewer halvings (width_multipliers, patch_size, coarse_halvings)",
            )
