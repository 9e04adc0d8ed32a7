"""Names of the tensors of the VQGAN family: ours, and those of each system, as one table of patterns for each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LEVEL = re.compile(r"(encoder|decoder)\.levels\.(\d+)\.(blocks|attentions|resample)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.middle\.(\d)\.(\w+)\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How a system calls what we call ``encoder.levels.0.blocks.1.conv1.weight`` and so on."""

    encoder_level: str
    """prefix of a level of the encoder, ``{i}`` counted from full resolution"""
    decoder_level: str
    """prefix of a level of the decoder: ``{i}`` counted from full resolution, or ``{k}`` in the order of execution"""
    block: str
    """a residual block in a level"""
    attention: str
    """an attention block in a level"""
    down: str
    """downsampling in a level of the encoder"""
    up: str
    """upsampling in a level of the decoder"""
    middle: tuple[str, str, str]
    """residual block, attention, residual block at the lowest resolution"""
    shortcut: str = "nin_shortcut"
    """the 1 x 1 convolution beside a residual block"""
    norm_out: str = "norm_out"
    """the last norm"""
    attention_parts: dict[str, str] = field(default_factory=dict)
    """our names in an attention block -> theirs, where they differ"""

    def peer(self, own: str, n_levels: int) -> str:
        """The system's name of one of our tensors outside the quantizer."""
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


TAMING = Naming(
    encoder_level="down.{i}", decoder_level="up.{i}", block="block", attention="attn", down="downsample.conv",
    up="upsample.conv", middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
)  # fmt: skip
"""taming, latent-diffusion, RQ-VAE."""
LLAMAGEN = Naming(
    encoder_level="conv_blocks.{i}", decoder_level="conv_blocks.{k}", block="res", attention="attn",
    down="downsample.conv", up="upsample.conv", middle=("mid.0", "mid.1", "mid.2"),
)  # fmt: skip
DIFFUSERS = Naming(
    encoder_level="down_blocks.{i}", decoder_level="up_blocks.{k}", block="resnets", attention="attentions",
    down="downsamplers.0.conv", up="upsamplers.0.conv", shortcut="conv_shortcut", norm_out="conv_norm_out",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    attention_parts={"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
)  # fmt: skip
OLD_DIFFUSERS = Naming(
    **{**DIFFUSERS.__dict__,
       "attention_parts": {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}},
)  # fmt: skip
"""Files from before diffusers renamed the parts of its attention."""
