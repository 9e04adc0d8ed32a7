"""The tokenizer: images <-> grids of codes. Plain torch; ``hub.py`` dresses it for transformers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.codes import CodeLevel, CodeSpec
from foundation.config import digest, from_dict, to_dict
from foundation.errors import CheckpointError, ConfigError, DataError
from foundation.images import Preprocess
from foundation.model_files import REMEDY, load_model_folder, save_model_folder
from foundation.tensor_files import load_weights, tensors_sha256
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.decoder import Decoder
from stage1_tokenizer.encoder import Encoder
from stage1_tokenizer.quantizers import build_quantizer

MODEL_TYPE = "tessera_tokenizer"


@dataclass(frozen=True)
class TokenizerOutput:
    """What a forward pass yields.

    Attributes:
        images_BCYX: the reconstruction, not clamped.
        codes_BHW: int64.
        latents_BCHW: before quantization, float32.
        losses: the quantizer's terms, already weighted.
    """

    images_BCYX: torch.Tensor
    codes_BHW: torch.Tensor
    latents_BCHW: torch.Tensor
    losses: dict[str, torch.Tensor]


class TokenizerModel(nn.Module):
    """Encoder, 1 x 1 projection, quantizer, 1 x 1 projection, decoder.

    Args:
        config: the architecture.
        preprocess: how images become pixels; part of what the codes mean.
    """

    def __init__(self, config: TokenizerConfig, preprocess: Preprocess) -> None:
        super().__init__()
        _require_divisible(config, preprocess)
        self.config, self.preprocess = config, preprocess
        self.encoder = Encoder(config, preprocess.n_channels)
        self.quantizer = build_quantizer(config.quantizer)
        self.to_code = nn.Conv2d(config.latent_channels, self.quantizer.width, 1)
        self.from_code = nn.Conv2d(self.quantizer.width, config.latent_channels, 1)
        self.decoder = Decoder(config, preprocess.n_channels)

    def forward(self, images_BCYX: torch.Tensor) -> TokenizerOutput:
        """Reconstruct; everything that training differentiates passes through here."""
        latents = self.latents(images_BCYX)
        quantized = self.quantizer(latents)
        images = self._decode_latents(quantized.latents_BCHW)
        return TokenizerOutput(images, quantized.codes_BHW, latents, quantized.losses)

    def latents(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] => (B, C, H, W) float32, before quantization.

        Raises:
            DataError: sides that are not multiples of the stride, or another number of channels.
        """
        channels, height, width = images_BCYX.shape[1:]
        stride = self.config.stride
        if channels != self.preprocess.n_channels:
            raise DataError("another number of channels", field="images", found=channels,
                            expected=self.preprocess.n_channels, fix="use tokenizer.preprocess")  # fmt: skip
        if height % stride or width % stride:
            raise DataError("sides are not multiples of the stride", field="images", found=f"{height} x {width}",
                            expected=f"multiples of {stride}", fix="crop or pad the images")  # fmt: skip
        return self.to_code(self.encoder(images_BCYX)).float()

    @torch.no_grad()
    def encode(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1] => codes, (B, H, W) int64."""
        return self.quantizer.encode(self.latents(images_BCYX))

    @torch.no_grad()
    def decode(self, codes_BHW: torch.Tensor) -> torch.Tensor:
        """Codes => pixels, (B, 3|1, Y, X), nominally in [-1, 1] but not clamped.

        Raises:
            DataError: a code outside the codebook.
        """
        low, high = int(codes_BHW.min()), int(codes_BHW.max())
        if low < 0 or high >= self.quantizer.codebook_size:
            raise DataError("codes outside the codebook", field="codes", found=f"{low}..{high}",
                            expected=f"0..{self.quantizer.codebook_size - 1}")  # fmt: skip
        return self._decode_latents(self.quantizer.decode(codes_BHW))

    @property
    def spec(self) -> CodeSpec:
        """What the codes of an image of the configured size are. Computes the fingerprint of the weights."""
        preprocess, stride, quantizer = self.preprocess, self.config.stride, self.quantizer
        level = CodeLevel(
            height=preprocess.height // stride,
            width=preprocess.width // stride,
            codebook_size=quantizer.codebook_size,
            depth=quantizer.depth,
        )
        return CodeSpec(levels=(level,), stride=stride, preprocess=preprocess, fingerprint=self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the weights."""
        config = from_dict(TokenizerConfig, to_dict(self.config))  # 0 in a float field becomes 0.0, as after loading
        settings = digest({"config": config, "preprocess": self.preprocess})
        return hashlib.sha256(f"{settings}|{tensors_sha256(self.state_dict())}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Fill an empty folder that ``load`` and ``Tokenizer.from_pretrained`` open."""
        spec = self.spec
        settings = {"tokenizer": to_dict(self.config), "preprocess": to_dict(self.preprocess)}
        save_model_folder(folder, self, MODEL_TYPE, "Tokenizer", {**settings, "fingerprint": spec.fingerprint})
        (folder / "code_spec.json").write_text(json.dumps(to_dict(spec), indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: str | Path) -> TokenizerModel:
        """Open a folder that ``save`` filled; the model is in evaluation mode.

        Raises:
            CheckpointError: the folder is missing, damaged, not a tokenizer, or its weights were changed.
        """
        settings, tensors = load_model_folder(Path(folder), MODEL_TYPE, ("tokenizer", "preprocess", "fingerprint"))
        model = cls.from_settings(settings)
        load_weights(model, tensors, str(folder))
        if model.fingerprint != settings["fingerprint"]:
            raise CheckpointError("the settings were changed after saving", field=str(folder), fix=REMEDY)
        return model.eval()

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> TokenizerModel:
        """Build from the ``tokenizer`` and ``preprocess`` entries of a ``config.json``; weights are random."""
        config = from_dict(TokenizerConfig, settings["tokenizer"], "tokenizer")
        return cls(config, from_dict(Preprocess, settings["preprocess"], "preprocess"))

    def _decode_latents(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.from_code(latents_BCHW.to(self.from_code.weight.dtype))).float()


def _require_divisible(config: TokenizerConfig, preprocess: Preprocess) -> None:
    for name in ("height", "width"):
        side = getattr(preprocess, name)
        if side % config.stride:
            lower = side // config.stride * config.stride
            choices = f"{lower} or {lower + config.stride}" if lower else str(config.stride)
            raise ConfigError(
                "is not divisible by the tokenizer's stride",
                field=f"data.preprocess.{name}",
                found=side,
                expected=f"a multiple of {config.stride} (2 for each level after the first)",
                fix=f"use {choices}, or fewer width_multipliers",
            )
