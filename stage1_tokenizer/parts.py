"""Parts of a tokenizer: what makes codes (encoder, codebook) and what makes images of them (decoder).

Each part can be frozen in training. With encoder and codebook frozen, codes stay what they are to the bit, so that
token datasets and priors made with the tokenizer before serve the one after: its codes are those of the one before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from foundation.config import digest
from foundation.config_fields import without_defaults
from foundation.storage.serialization import tensors_sha256

if TYPE_CHECKING:
    from stage1_tokenizer.tokenizer import TokenizerModel

CODING = frozenset({"encoder", "codebook"})
"""parts that decide codes"""


@dataclass(frozen=True)
class CodesOf:
    """Says whose codes a tokenizer makes whose decoder was trained on.

    Attributes:
        fingerprint: of the tokenizer that made them first.
        coding_sha256: ``coding_sha256`` of both; while it is that, the codes are.
    """

    fingerprint: str
    coding_sha256: str


def part_of(name: str) -> str:
    """``encoder``, ``codebook`` or ``decoder``: the part of a tensor, by its name in ``state_dict``.

    With two grids, what decodes the coarse one is of the encoder: the fine codes depend on it.
    """
    if name.startswith(("decoder.", "bottleneck.from_code.")):
        return "decoder"
    return "codebook" if name.startswith(("bottleneck.quantizer.", "bottleneck.coarse.quantizer.")) else "encoder"


def freeze(model: TokenizerModel, parts: Collection[str]) -> None:
    """Take parts out of training: no gradients; their buffers are left to the training task."""
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)


def set_training(model: TokenizerModel, frozen: Collection[str]) -> None:
    """Training mode for all parts but the frozen ones, which compute as in evaluation: no dropout, no relaxed codes.

    A frozen codebook does so only beside a frozen encoder, which needs no gradient through it.
    """
    model.train("encoder" not in frozen)
    model.decoder.train("decoder" not in frozen)
    for quantizer in model.quantizers:
        quantizer.train(not set(frozen) >= CODING)


def coding_sha256(model: TokenizerModel) -> str:
    """SHA-256 over what decides codes: settings, preprocess, and the weights of encoder and codebook."""
    weights: Mapping[str, torch.Tensor] = model.state_dict()
    coding = {name: value for name, value in weights.items() if part_of(name) in CODING}
    settings: dict[str, Any] = {
        "config": without_defaults(model.config),
        "preprocess": without_defaults(model.preprocess),
        "weights": tensors_sha256(coding),
    }
    return digest(settings)
