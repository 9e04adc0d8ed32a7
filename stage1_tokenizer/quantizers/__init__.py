"""Quantizers: latents <-> codes. One file each, one contract (``base.py``), chosen by a typed config."""

from stage1_tokenizer.quantizers.base import Quantized, Quantizer
from stage1_tokenizer.quantizers.config import EMAVQConfig, FSQConfig, QuantizerConfig
from stage1_tokenizer.quantizers.ema_vq import EMAVQ
from stage1_tokenizer.quantizers.fsq import FSQ

__all__ = ["EMAVQ", "FSQ", "EMAVQConfig", "FSQConfig", "Quantized", "Quantizer", "QuantizerConfig", "build_quantizer"]


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a configuration describes."""
    match config:
        case FSQConfig():
            return FSQ(config)
        case EMAVQConfig():
            return EMAVQ(config)
