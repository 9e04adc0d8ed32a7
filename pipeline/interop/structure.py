"""Architecture of a VQGAN-family checkpoint, inferred from shapes and tensor names (a table for each system)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from foundation.errors import CheckpointError
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.tokenizer import TokenizerModel

_MAX_LEVELS = 16
_MAX_BLOCKS = 64
_ATTENTION_KERNEL = re.compile(r"\.(attentions\.\d+|middle\.1)\.(q|k|v|proj_out)\.weight$")
_LEVEL = re.compile(r"(encoder|decoder)\.levels\.(\d+)\.(blocks|attentions|resample)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.middle\.(\d)\.(\w+)\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """A system's names of our tensors such as ``encoder.levels.0.blocks.1.conv1.weight``."""

    encoder_level: str
    """prefix of a level of the encoder, ``{i}`` counted from full resolution"""
    decoder_level: str
    """prefix of a level of the decoder, ``{i}`` counted from full resolution or ``{k}`` in the order of execution"""
    block: str
    """a residual block in a level"""
    middle: tuple[str, str, str]
    """residual block, attention, residual block at the lowest resolution"""
    attention: str = "attn"
    """an attention block in a level"""
    down: str = "downsample.conv"
    """downsampling in a level of the encoder"""
    up: str = "upsample.conv"
    """upsampling in a level of the decoder"""
    shortcut: str = "nin_shortcut"
    """the 1 x 1 convolution beside a residual block"""
    norm_out: str = "norm_out"
    """the last norm"""
    attention_parts: dict[str, str] = field(default_factory=dict)
    """our names in an attention block -> the system's, if different"""

    def upstream(self, own: str, n_levels: int) -> str:
        """Translate our name of a tensor outside the quantizer."""
        level = _LEVEL.fullmatch(own)
        if level is not None:
            side, index, kind, rest = level.groups()
            prefix = self.level(side, int(index) if side == "encoder" else n_levels - 1 - int(index), n_levels)
            if kind == "resample":
                return f"{prefix}.{self.down if side == 'encoder' else self.up}.{rest.removeprefix('conv.')}"
            number, part, last = rest.split(".")
            pattern = self.block if kind == "blocks" else self.attention
            return f"{prefix}.{pattern}.{number}.{self._part(kind, part)}.{last}"
        middle = _MIDDLE.fullmatch(own)
        if middle is not None:
            side, index, part, last = middle.groups()
            kind = "attentions" if index == "1" else "blocks"
            return f"{side}.{self.middle[int(index)]}.{self._part(kind, part)}.{last}"
        for ours, theirs in (("bottleneck.to_code", "quant_conv"), ("bottleneck.from_code", "post_quant_conv")):
            if own.startswith(ours + "."):
                return theirs + own.removeprefix(ours)
        return own.replace(".norm_out.", f".{self.norm_out}.")

    def level(self, side: str, index: int, n_levels: int) -> str:
        """Prefix of a level, ``index`` counted from full resolution."""
        pattern = self.encoder_level if side == "encoder" else self.decoder_level
        return f"{side}.{pattern}".format(i=index, k=n_levels - 1 - index)

    @property
    def any_encoder_level(self) -> re.Pattern[str]:
        """Matches the names in the encoder's levels; group 1 is the level."""
        return re.compile(r"encoder\." + self.encoder_level.replace(".", r"\.").format(i=r"(\d+)") + r"\.")

    def _part(self, kind: str, part: str) -> str:
        if kind == "attentions":
            return self.attention_parts.get(part, part)
        return self.shortcut if part == "shortcut" else part


_MIDDLE_OF_TAMING = ("mid.block_1", "mid.attn_1", "mid.block_2")
TAMING = Naming(encoder_level="down.{i}", decoder_level="up.{i}", block="block", middle=_MIDDLE_OF_TAMING)
"""taming, latent-diffusion, RQ-VAE"""
LLAMAGEN = Naming(
    encoder_level="conv_blocks.{i}", decoder_level="conv_blocks.{k}", block="res", middle=("mid.0", "mid.1", "mid.2")
)
DIFFUSERS = Naming(
    encoder_level="down_blocks.{i}",
    decoder_level="up_blocks.{k}",
    block="resnets",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    attention="attentions",
    down="downsamplers.0.conv",
    up="upsamplers.0.conv",
    shortcut="conv_shortcut",
    norm_out="conv_norm_out",
    attention_parts={"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
)
_OLD_PARTS = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}
OLD_DIFFUSERS = replace(DIFFUSERS, attention_parts=_OLD_PARTS)
"""files from before diffusers renamed the parts of its attention"""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Sizes of encoder and decoder; fields as in ``VQGANNetworks``."""

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
        """Number of resolutions."""
        return len(self.width_multipliers)

    @property
    def networks(self) -> dict[str, Any]:
        """Fields of ``VQGANNetworks``."""
        names = ("base_width", "width_multipliers", "n_res_blocks", "attention_levels", "middle_attention")
        return {name: getattr(self, name) for name in names}


def read_structure(checkpoint: Checkpoint, naming: Naming) -> Structure:
    """Infer the sizes.

    Raises:
        CheckpointError: a required tensor is missing, or widths are no multiples of the first.
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
    """Shape of a required tensor of two or more dimensions, none of size 0.

    Raises:
        CheckpointError: missing, or another shape.
    """
    shape = checkpoint.shape(key)
    if len(shape) < 2 or 0 in shape:
        raise CheckpointError("is not a kernel", field=f"{checkpoint.source}: {key}", found=shape)
    return shape


def multiples(checkpoint: Checkpoint, widths: list[int], base: int) -> tuple[int, ...]:
    """Widths as multiples of the first.

    Raises:
        CheckpointError: they are no multiples.
    """
    if any(width % base for width in widths):
        raise checkpoint.error("has levels of unexpected widths", found=widths, expected=f"multiples of {base}")
    return tuple(width // base for width in widths)


def last_index(checkpoint: Checkpoint, pattern: re.Pattern[str], limit: int) -> int:
    """Largest number in group 1 of a pattern among the names; 0 if none matches.

    Raises:
        CheckpointError: ``limit`` or more.
    """
    matches = (pattern.match(key) for key in checkpoint.tensors)
    found = max((int(each[1][:9]) for each in matches if each), default=0)
    if found >= limit:
        raise checkpoint.error("has too large a number in a name", found=found, expected=f"below {limit}")
    return found


def network_origins(model: TokenizerModel, naming: Naming) -> dict[str, Origin]:
    """Origins of all tensors outside the quantizer; attention kernels may be stored as matrices."""
    assert isinstance(model.config.networks, VQGANNetworks)
    n_levels = len(model.config.networks.width_multipliers)
    return {
        name: Origin(
            (naming.upstream(name, n_levels),), _as_kernel if _ATTENTION_KERNEL.search(name) else torch.Tensor.detach
        )
        for name in model.state_dict()
        if not name.startswith("bottleneck.quantizer.")
    }


def _as_kernel(weight: torch.Tensor) -> torch.Tensor:
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def _numbered(prefix: str, part: str) -> re.Pattern[str]:
    return re.compile(re.escape(f"{prefix}.{part}.") + r"(\d+)\.")


def diffusers_arguments(
    networks: Structure | VQGANNetworks, latent_channels: int, image_channels: int
) -> dict[str, Any]:
    """The sizes by the names of diffusers' constructor arguments."""
    attention = [i in networks.attention_levels for i in range(len(networks.width_multipliers))]
    return {
        "block_out_channels": [networks.base_width * multiplier for multiplier in networks.width_multipliers],
        "layers_per_block": networks.n_res_blocks,
        "latent_channels": latent_channels,
        "in_channels": image_channels,
        "down_block_types": [f"{'Attn' if each else ''}DownEncoderBlock2D" for each in attention],
        "up_block_types": [f"{'Attn' if each else ''}UpDecoderBlock2D" for each in reversed(attention)],
    }
