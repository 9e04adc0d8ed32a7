"""Bottleneck between encoder and decoder: projections and quantizer, on a single scale or hierarchical.

The hierarchy of two scales is VQ-VAE-2's (Razavi, van den Oord and Vinyals 2019, arXiv:1906.00446, section 3.1): the
fine grid of codes is encoded conditioned on the coarse one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from foundation.codes.spec import CodeLevel
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.blocks import Downsample, ResidualBlock, Upsample, fast_layout
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.base import Quantizer, without_autocast

T = TypeVar("T")


@dataclass(frozen=True)
class Coded:
    """What a bottleneck's forward pass gives beside the decoder's input.

    Attributes:
        codes: as ``Bottleneck.encode`` returns them.
        latents_BCHW: before quantization, float32; of the fine grid where there are two.
        losses: the quantizers' terms, already weighted.
        metrics: the quantizers' other scalars.
    """

    codes: torch.Tensor
    latents_BCHW: torch.Tensor
    losses: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor | float]


class SingleScale(nn.Module):
    """1 x 1 projection, quantizer, 1 x 1 projection; or the quantizer alone."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.quantizer: Quantizer = config.quantizer.build()
        none = config.projection == "none"
        width = self.quantizer.latent_width
        self.to_code = nn.Identity() if none else nn.Conv2d(config.encoder_channels, width, 1)
        self.from_code = nn.Identity() if none else nn.Conv2d(self.quantizer.width, config.latent_channels, 1)

    def forward(self, features_BCHW: torch.Tensor) -> tuple[torch.Tensor, Coded]:
        """Features => quantized features, with codes and losses."""
        latents = self.to_code(features_BCHW).float()
        quantized = self.quantizer(latents)
        features = _project(self.from_code, quantized.latents_BCHW)
        return features, Coded(quantized.codes_BHW, latents, quantized.losses, quantized.metrics)

    def encode(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) features => codes, (B, H, W) or (B, H, W, D)."""
        return self.quantizer.encode(self.to_code(features_BCHW).float())

    def decode(self, codes_BHW: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Codes => (B, C, H, W) features."""
        return _project(self.from_code, self.quantizer.decode(codes_BHW))

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """The one quantizer."""
        return (self.quantizer,)

    def start(self, features_BCHW: torch.Tensor, generator: torch.Generator) -> None:
        """Place latents and codebook by the features of a first batch, all processes' together."""
        _start(self.quantizer, self.to_code, features_BCHW, generator)

    def levels(self, height: int, width: int) -> tuple[CodeLevel, ...]:
        """The grids of an image whose finest grid is ``height`` by ``width``."""
        return (_level(self.quantizer, height, width),)


class Hierarchical(nn.Module):
    """A coarse grid of codes, decoded and concatenated to the features, and a fine grid of codes for the rest.

    Codes are the flat sequence (B, T): the coarse grid, then the fine one.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        channels, halvings = config.latent_channels, config.coarse_halvings
        self.ratio = 2**halvings
        self.coarse = SingleScale(config)
        self.coarse_encoder = nn.Sequential(
            *(layer for _ in range(halvings) for layer in (_residual(config), Downsample(channels))), _residual(config)
        )
        self.coarse_decoder = nn.Sequential(
            _residual(config), *(layer for _ in range(halvings) for layer in (Upsample(channels), _residual(config)))
        )
        self.quantizer: Quantizer = config.quantizer.build()
        self.to_code = nn.Conv2d(2 * channels, self.quantizer.latent_width, 1)
        self.from_code = nn.Conv2d(self.quantizer.width + channels, channels, 1)

    def forward(self, features_BCHW: torch.Tensor) -> tuple[torch.Tensor, Coded]:
        """Features => quantized features, with codes and losses of both grids."""
        coarse_features, coarse = self.coarse(self.coarse_encoder(features_BCHW))
        context = self.coarse_decoder(coarse_features)
        latents = self._fine_latents(features_BCHW, context)
        fine = self.quantizer(latents)
        codes = torch.cat([coarse.codes.flatten(1), fine.codes_BHW.flatten(1)], 1)
        losses = {**_prefixed("coarse_", coarse.losses), **fine.losses}
        metrics = {**_prefixed("coarse_", coarse.metrics), **fine.metrics}
        return self._join(fine.latents_BCHW, context), Coded(codes, latents, losses, metrics)

    def encode(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) features => (B, T) codes."""
        grid = features_BCHW.shape[-2] // self.ratio, features_BCHW.shape[-1] // self.ratio
        coarse_codes = self.coarse.encode(self.coarse_encoder(features_BCHW))
        context = self.coarse_decoder(self.coarse.decode(coarse_codes, grid))
        fine_codes = self.quantizer.encode(self._fine_latents(features_BCHW, context))
        return torch.cat([coarse_codes.flatten(1), fine_codes.flatten(1)], 1)

    def decode(self, codes_BT: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, T) codes of a fine grid of ``grid`` = (H, W) => (B, C, H, W) features."""
        coarse, fine = self.levels(*grid)
        coarse_BHW = codes_BT[:, : coarse.n_codes].reshape(-1, *coarse.shape)
        fine_BHW = codes_BT[:, coarse.n_codes :].reshape(-1, *fine.shape)
        context = self.coarse_decoder(self.coarse.decode(coarse_BHW, (coarse.height, coarse.width)))
        return self._join(self.quantizer.decode(fine_BHW), context)

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Of the coarse grid, of the fine grid."""
        return (self.coarse.quantizer, self.quantizer)

    def start(self, features_BCHW: torch.Tensor, generator: torch.Generator) -> None:
        """Place latents and codebooks by the features of a first batch, coarse ones first."""
        above = self.coarse_encoder(features_BCHW)
        self.coarse.start(above, generator)
        context = self.coarse_decoder(self.coarse.decode(self.coarse.encode(above), (above.shape[-2], above.shape[-1])))
        _start(self.quantizer, self.to_code, self._beside(features_BCHW, context), generator)

    def levels(self, height: int, width: int) -> tuple[CodeLevel, ...]:
        """The grids of an image whose finest grid is ``height`` by ``width``."""
        coarse = _level(self.coarse.quantizer, height // self.ratio, width // self.ratio)
        return (coarse, _level(self.quantizer, height, width))

    def _fine_latents(self, features_BCHW: torch.Tensor, context_BCHW: torch.Tensor) -> torch.Tensor:
        return self.to_code(self._beside(features_BCHW, context_BCHW)).float()

    def _beside(self, features_BCHW: torch.Tensor, context_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.cat([features_BCHW, context_BCHW.to(features_BCHW.dtype)], 1)

    def _join(self, fine_BCHW: torch.Tensor, context_BCHW: torch.Tensor) -> torch.Tensor:
        return _project(self.from_code, torch.cat([fine_BCHW, context_BCHW.float()], 1))


Bottleneck = SingleScale | Hierarchical


def build_bottleneck(config: TokenizerConfig) -> Bottleneck:
    """A single scale, or two if the settings have ``coarse_halvings``."""
    return Hierarchical(config) if config.coarse_halvings else SingleScale(config)


@torch.no_grad()
def _start(
    quantizer: Quantizer, to_code: nn.Conv2d | nn.Identity, inputs_BCHW: torch.Tensor, generator: torch.Generator
) -> None:
    wanted = quantizer.projection_start(to_code(inputs_BCHW).float()) if isinstance(to_code, nn.Conv2d) else None
    if wanted is not None:
        assert isinstance(to_code, nn.Conv2d)
        matrix_CC, offset_C = wanted
        with without_autocast(matrix_CC):
            assert to_code.bias is not None
            to_code.weight.copy_(torch.einsum("oc,cihw->oihw", matrix_CC, to_code.weight))
            to_code.bias.copy_(matrix_CC @ to_code.bias + offset_C)
    quantizer.initialize(to_code(inputs_BCHW).float(), generator)


def _residual(config: TokenizerConfig) -> ResidualBlock:
    channels, networks = config.latent_channels, config.networks
    assert isinstance(networks, VQGANNetworks)
    return ResidualBlock(channels, channels, groups=networks.norm_groups, dropout=networks.dropout)


def _project(layer: nn.Conv2d | nn.Identity, latents_BCHW: torch.Tensor) -> torch.Tensor:
    # One memory layout for all sources of latents: the rounding of a convolution depends on it.
    dtype = layer.weight.dtype if isinstance(layer, nn.Conv2d) else latents_BCHW.dtype
    out: torch.Tensor = layer(fast_layout(latents_BCHW.to(dtype).contiguous()))
    return out


def _level(quantizer: Quantizer, height: int, width: int) -> CodeLevel:
    sizes = quantizer.config.codebook_sizes
    size = sizes if len(set(sizes)) > 1 else quantizer.codebook_size
    return CodeLevel(height=height, width=width, codebook_size=size, depth=quantizer.depth)


def _prefixed(prefix: str, values: dict[str, T]) -> dict[str, T]:
    return {prefix + name: value for name, value in values.items()}
