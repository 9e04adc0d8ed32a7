"""Parts of a tokenizer: what makes codes (encoder, codebook) and what makes images of them (decoder).

Each part can be frozen in training. With encoder and codebook frozen, codes stay what they are to the bit, so that
token datasets and priors made with the tokenizer before serve the one after: its codes are those of the one before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foundation.config import digest
from foundation.config_fields import without_defaults
from foundation.images.config import Preprocess
from foundation.storage.serialization import tensors_sha256
from foundation.training.muon import hidden_matrix
from stage1_tokenizer.config import TokenizerConfig

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


def freeze(model: nn.Module, parts: Collection[str]) -> None:
    """Take parts out of training: no gradients; their buffers are left to the training task."""
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)


def tag_kernels(encoder: nn.Module, decoder: nn.Module) -> None:
    """Tag the kernels between the first and the last of the encoder, and of the decoder, as hidden matrices.

    Projections to and from codes, and the coarse grid's networks, are not among them.
    """
    for network in (encoder, decoder):
        kernels = [each.weight for each in network.modules() if isinstance(each, nn.Conv2d)]
        for kernel in kernels[1:-1]:
            hidden_matrix(kernel)


def coding_sha256(config: TokenizerConfig, preprocess: Preprocess, weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over what decides codes: settings, preprocess, and the weights of encoder and codebook."""
    settings: dict[str, Any] = {
        "config": without_defaults(config),
        "preprocess": without_defaults(preprocess),
        "weights": tensors_sha256({name: value for name, value in weights.items() if part_of(name) in CODING}),
    }
    return digest(settings)
