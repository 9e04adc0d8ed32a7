"""Encoder and decoder of the family that a configuration names."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from stage1_tokenizer.config import TokenizerConfig

_HOMES = {
    "vqgan": ("stage1_tokenizer.networks.vqgan.Encoder", "stage1_tokenizer.networks.vqgan.Decoder"),
    "magvit2": ("stage1_tokenizer.networks.magvit2.Magvit2Encoder", "stage1_tokenizer.networks.magvit2.Magvit2Decoder"),
    "dvae": ("stage1_tokenizer.networks.dvae.DVAEEncoder", "stage1_tokenizer.networks.dvae.DVAEDecoder"),
}


class EncoderNetwork(nn.Module):
    """(B, image_channels, Y, X) in [-1, 1] => (B, encoder_channels, H, W)."""


class DecoderNetwork(nn.Module):
    """(B, latent_channels, H, W) => (B, image_channels, Y, X); ``conv_out`` is its last convolution."""

    conv_out: nn.Conv2d


def build_encoder(config: TokenizerConfig, image_channels: int) -> EncoderNetwork:
    """The encoder, with random weights."""
    encoder: EncoderNetwork = _build(_HOMES[config.networks][0], config, image_channels)
    return encoder


def build_decoder(config: TokenizerConfig, image_channels: int) -> DecoderNetwork:
    """The decoder, with random weights."""
    decoder: DecoderNetwork = _build(_HOMES[config.networks][1], config, image_channels)
    return decoder


def _build(place: str, config: TokenizerConfig, image_channels: int) -> Any:
    home, _, name = place.rpartition(".")
    return getattr(importlib.import_module(home), name)(config, image_channels)
