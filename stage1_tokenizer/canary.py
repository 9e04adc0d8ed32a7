"""A few fixed images with their codes, stored beside a frozen tokenizer.

Encoding them again shows at once whether the tokenizer still does what it did when it was frozen: another value range,
channel order, precision, codebook, or weights that were never averaged all change some code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from foundation.errors import ContractError
from foundation.images import to_unit_range
from foundation.tensor_files import load_tensors
from stage1_tokenizer.tokenizer import TokenizerModel

FILE = "canary.safetensors"
N_IMAGES = 16
TOLERANCE = 1e-3  # share of codes that may differ on another device or with other libraries


@dataclass(frozen=True)
class Canary:
    """What was stored.

    Attributes:
        pixels_BYXC: (B, Y, X, C) uint8.
        codes: as the tokenizer encoded them; latents of a continuous one.
    """

    pixels_BYXC: np.ndarray
    codes: torch.Tensor


def save_canary(tokenizer: TokenizerModel, pixels_BYXC: np.ndarray, folder: Path) -> None:
    """Encode up to 16 images, (B, Y, X, C) uint8, and store them with their codes."""
    pixels = np.ascontiguousarray(pixels_BYXC[:N_IMAGES])
    tensors = {"pixels": torch.from_numpy(pixels), "codes": _encode(tokenizer, pixels)}
    save_file(tensors, folder / FILE)


def load_canary(folder: Path) -> Canary | None:
    """Read what ``save_canary`` stored; None beside a tokenizer that was frozen without one.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (folder / FILE).exists():
        return None
    tensors = load_tensors(folder / FILE)
    return Canary(tensors["pixels"].numpy(), tensors["codes"])


def check_canary(tokenizer: TokenizerModel, folder: Path) -> None:
    """Encode the stored images again and compare.

    Raises:
        ContractError: more than one code in a thousand differs.
    """
    canary = load_canary(folder)
    if canary is None:
        return
    differing = float((_encode(tokenizer, canary.pixels_BYXC) != canary.codes).double().mean())
    if differing > TOLERANCE:
        raise ContractError(
            "the tokenizer no longer gives the codes it gave when it was frozen",
            field=str(folder),
            found=f"{differing:.1%} of the codes of {len(canary.codes)} stored images differ",
            expected=f"at most {TOLERANCE:.1%}",
            fix="take the folder anew; if it is unchanged, this machine computes differently: report it",
        )


def _encode(tokenizer: TokenizerModel, pixels_BYXC: np.ndarray) -> torch.Tensor:
    device = next(tokenizer.parameters()).device
    return tokenizer.encode(to_unit_range(pixels_BYXC).to(device)).cpu().contiguous()
