"""What to change in a quantizer's settings when it leaves most of its codes unused."""

from __future__ import annotations

from stage1_tokenizer.quantizers.config import (
    FSQConfig,
    GumbelConfig,
    IBQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    VQConfig,
)


def remedies(config: QuantizerConfig) -> str:
    """Settings that this quantizer has and that are not set so yet, joined by "or"."""
    match config:
        case VQConfig():
            return " or ".join(_of_vq(config, ""))
        case ResidualConfig():
            return " or ".join(["a smaller depth", *_of_vq(config.codebook, "codebook.")])
        case FSQConfig():
            start = [] if config.initial == "whitened" else ["initial: whitened"]
            return " or ".join(["fewer or smaller levels", *start, f"evenness above {config.evenness:g}"])
        case LFQConfig():
            return f"a smaller width or entropy_weight above {config.entropy_weight:g}"
        case IBQConfig():
            return f"a smaller codebook_size or entropy_weight above {config.entropy_weight:g}"
        case GumbelConfig():
            return (
                f"a smaller codebook_size, temperature_steps above {config.temperature_steps:,} "
                f"or kl_weight above {config.kl_weight:g}"
            )
    raise AssertionError(f"{config} has no codes")


def _of_vq(config: VQConfig, prefix: str) -> list[str]:
    found = [f"a smaller {prefix}codebook_size"]
    if config.projection:
        return [*found, "more steps, which a projection needs"]
    if config.initial != "latents":
        found.append(f"{prefix}initial: latents")
    if config.revive_below == 0:
        found.append(f"{prefix}revive_below: 0.05")
    if config.width > 8:
        found.append(f"a smaller {prefix}width")
    return found
