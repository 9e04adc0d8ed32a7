"""Encoders and decoders, each family with its settings."""

from stage1_tokenizer.networks.config import NetworksConfig

__all__ = ["NetworksConfig"]
