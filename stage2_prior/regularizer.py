"""reAR: training on contexts with random codes, and alignment of hidden states with the tokenizer's code vectors.

Source: He et al. 2025, arXiv:2510.04450. Both parts act in training alone; what is saved is a plain prior.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from foundation.config import require
from foundation.randomness import derive_seed, uniforms
from stage2_prior.block import stream_norm
from stage2_prior.config import PriorConfig, PriorTraining, Regularizer

_FIELD = "prior.training.regularizer"


def context_noise(positions_B: np.ndarray, sizes_T: np.ndarray, strength: float, seed: int) -> torch.Tensor:
    """Random codes that replace codes of the context: each with probability u * strength, u uniform for each image.

    Args:
        positions_B: of each sample in the data order; a row depends on its own, ``strength`` and ``seed`` alone.
        sizes_T: size of the codebook at each position; all its codes are equally likely.
        strength: 0 to 1.
        seed: of the draws.

    Returns:
        (B, T) int64 on the CPU; -1 where the image's own code stays.
    """
    positions_B1, positions_1T = positions_B[:, None], np.arange(len(sizes_T))[None, :]
    share_B1 = strength * uniforms(positions_B1, np.zeros_like(positions_B1), seed, "share of context noise")
    replaced_BT = uniforms(positions_B1, positions_1T, seed, "context noise") < share_B1
    codes_BT = (uniforms(positions_B1, positions_1T, seed, "random code") * sizes_T).astype(np.int64)
    return torch.from_numpy(np.where(replaced_BT, codes_BT, -1))


class Alignment(nn.Module):
    """Two small networks, of training alone, from hidden states to code vectors; their loss is a negative cosine.

    The first sees what the first block makes of each input and is to find the vector of that input's code, where it was
    not replaced. The second sees the state after three quarters of the blocks, and is to find the vector of the code
    that is predicted there.

    Args:
        config: of the prior.
        regularizer: the weights; a network of weight 0 is left out.
        vectors_VC: the tokenizer's vector of each code.

    Attributes:
        after: the numbers of the blocks, from 1, whose outputs ``forward`` takes.
    """

    vectors_VC: torch.Tensor

    def __init__(self, config: PriorConfig, regularizer: Regularizer, vectors_VC: torch.Tensor) -> None:
        super().__init__()
        self.weights, width = (regularizer.current_weight, regularizer.target_weight), vectors_VC.shape[1]
        self.current = _head(config, width) if regularizer.current_weight else None
        self.target = _head(config, width) if regularizer.target_weight else None
        self.after = (1, (3 * config.shape.n_layers + 2) // 4)
        self.register_buffer("vectors_VC", F.normalize(vectors_VC.float(), dim=1), persistent=False)

    def forward(
        self, states: Mapping[int, torch.Tensor], codes_BT: torch.Tensor, noise_BT: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch.

        Args:
            states: (B, T, E) after the blocks ``after``.
            codes_BT: the images' own codes in the order of their prediction, int64.
            noise_BT: as of ``context_noise``, in the same order; None replaces nothing.

        Returns:
            a float32 scalar; and the two cosines, detached: means over all positions, of which replaced ones count 0.
        """
        loss, metrics = codes_BT.new_zeros((), dtype=torch.float32), {}
        if self.current is not None:
            cosines_BP = self._cosines(self.current(states[self.after[0]][:, 1:]), codes_BT[:, :-1])
            if noise_BT is not None:
                cosines_BP = cosines_BP.masked_fill(noise_BT[:, :-1] >= 0, 0.0)
            mean = cosines_BP.sum() / max(1, cosines_BP.numel())
            loss, metrics["alignment_current"] = loss - self.weights[0] * mean, mean.detach()
        if self.target is not None:
            mean = self._cosines(self.target(states[self.after[1]]), codes_BT).mean()
            loss, metrics["alignment_target"] = loss - self.weights[1] * mean, mean.detach()
        return loss, metrics

    def _cosines(self, found_BPC: torch.Tensor, codes_BP: torch.Tensor) -> torch.Tensor:
        return (F.normalize(found_BPC.float(), dim=-1) * self.vectors_VC[codes_BP]).sum(-1)


def build_alignment(
    config: PriorConfig, training: PriorTraining, vectors_VC: torch.Tensor | None, seed: int
) -> Alignment | None:
    """The alignment that a training asks for, with weights that depend on the seed alone; None for none.

    Raises:
        ConfigError: code vectors are needed, and there are none.
    """
    regularizer = training.regularizer
    if regularizer is None or not regularizer.aligns:
        return None
    found, expected = regularizer.current_weight or regularizer.target_weight, "0 for codes without their tokenizer"
    fix = f"name the tokenizer (--tokenizer), or set {_FIELD}.current_weight and target_weight to 0"
    require(vectors_VC is not None, f"{_FIELD}.current_weight", found, expected, fix)
    assert vectors_VC is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "alignment"))
        return Alignment(config, regularizer, vectors_VC)


def require_one_slot(training: PriorTraining, n_slots: int) -> None:
    """Refuse alignment for codes of several slots: a position has no single vector that a code of it means.

    Raises:
        ConfigError: naming the fields to set.
    """
    regularizer = training.regularizer
    fits, fix = regularizer is None or not regularizer.aligns or n_slots == 1, "keep the noise alone"
    expected = f"current_weight and target_weight 0 for codes of {n_slots} slots"
    require(fits, _FIELD, regularizer, expected, fix)


def _head(config: PriorConfig, width: int) -> nn.Sequential:
    d_model = config.shape.d_model
    return nn.Sequential(stream_norm(config), nn.Linear(d_model, d_model), nn.SiLU(), nn.Linear(d_model, width))
