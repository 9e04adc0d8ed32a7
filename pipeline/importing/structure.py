"""What names and shapes tell about a model of the VQGAN family."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from foundation.errors import CheckpointError
from pipeline.importing.checkpoint import Checkpoint
from pipeline.importing.naming import Naming
from pipeline.importing.plan import Origin
from stage1_tokenizer.tokenizer import TokenizerModel

_MAX_LEVELS = 16
_MAX_BLOCKS = 64
_ATTENTION_KERNEL = re.compile(r"\.(attentions\.\d+|middle\.1)\.(q|k|v|proj_out)\.weight$")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Sizes of encoder and decoder, with the meaning of the fields of ``TokenizerConfig``."""

    image_channels: int
    base_width: int
    width_multipliers: tuple[int, ...]
    n_res_blocks: int
    attention_levels: tuple[int, ...]
    middle_attention: bool
    encoder_channels: int
    latent_channels: int

    @property
    def n_levels(self) -> int:
        """Resolutions."""
        return len(self.width_multipliers)

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of ``TokenizerConfig``."""
        names = ("base_width", "width_multipliers", "n_res_blocks", "attention_levels", "middle_attention")
        return {**{name: getattr(self, name) for name in names}, "latent_channels": self.latent_channels}


def read_structure(checkpoint: Checkpoint, naming: Naming) -> Structure:
    """Infer the sizes.

    Raises:
        CheckpointError: a tensor without which they cannot be told is missing, or widths that are no multiples.
    """
    base, image_channels = kernel(checkpoint, "encoder.conv_in.weight")[:2]
    n_levels = 1 + last_index(checkpoint, naming.any_encoder_level, _MAX_LEVELS)
    first = [naming.level("encoder", i, n_levels) for i in range(n_levels)]
    widths = [kernel(checkpoint, f"{prefix}.{naming.block}.0.conv2.weight")[0] for prefix in first]
    return Structure(
        image_channels=image_channels,
        base_width=base,
        width_multipliers=multiples(checkpoint, widths, base),
        n_res_blocks=1 + last_index(checkpoint, _numbered(first[0], naming.block), _MAX_BLOCKS),
        attention_levels=tuple(i for i, level in enumerate(first) if checkpoint.has(f"{level}.{naming.attention}.")),
        middle_attention=checkpoint.has(f"encoder.{naming.middle[1]}."),
        encoder_channels=kernel(checkpoint, "encoder.conv_out.weight")[0],
        latent_channels=kernel(checkpoint, "decoder.conv_in.weight")[1],
    )


def kernel(checkpoint: Checkpoint, key: str) -> tuple[int, ...]:
    """Sides of a tensor that must have at least one, none of them 0.

    Raises:
        CheckpointError: missing, or not a kernel.
    """
    shape = checkpoint.shape(key)
    if len(shape) < 2 or 0 in shape:
        raise CheckpointError("is not a kernel", field=f"{checkpoint.source}: {key}", found=shape)
    return shape


def multiples(checkpoint: Checkpoint, widths: list[int], base: int) -> tuple[int, ...]:
    """Widths as multiples of the first.

    Raises:
        CheckpointError: they are not.
    """
    if any(width % base for width in widths):
        raise CheckpointError("has levels whose widths are no multiples of the first convolution's",
                              field=checkpoint.source, found=widths, expected=f"multiples of {base}")  # fmt: skip
    return tuple(width // base for width in widths)


def last_index(checkpoint: Checkpoint, pattern: re.Pattern[str], limit: int) -> int:
    """The largest number that group 1 of a pattern has among the names; 0 if none matches.

    Raises:
        CheckpointError: at least ``limit``.
    """
    matches = (pattern.match(key) for key in checkpoint.tensors)
    found = max((int(each[1][:9]) for each in matches if each), default=0)
    if found >= limit:
        raise CheckpointError("has a number in a name that is too large", field=checkpoint.source, found=found,
                              expected=f"below {limit}")  # fmt: skip
    return found


def network_origins(model: TokenizerModel, naming: Naming) -> dict[str, Origin]:
    """Origins of everything but the quantizer; kernels of attention may be stored as plain matrices."""
    n_levels = len(model.config.width_multipliers)
    origins = {}
    for name in model.state_dict():
        if not name.startswith("bottleneck.quantizer."):
            key = naming.peer(name, n_levels)
            made = _as_kernel if _ATTENTION_KERNEL.search(name) else torch.Tensor.detach
            origins[name] = Origin((key,), made)
    return origins


def _as_kernel(weight: torch.Tensor) -> torch.Tensor:
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def _numbered(prefix: str, part: str) -> re.Pattern[str]:
    return re.compile(re.escape(f"{prefix}.{part}.") + r"(\d+)\.")
