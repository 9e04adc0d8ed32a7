"""A start at which every latent channel says something of its own: mean 0, equal variance, no correlation.

The channels of a network with random weights nearly repeat one another, and rounding channel by channel then leaves
most of an implicit codebook unused. Source of the map: Bell and Sejnowski 1997, "The independent components of natural
scenes are edge filters", section 2 (ZCA, the whitening that moves the data least).
"""

from __future__ import annotations

import torch

from stage1_tokenizer.quantizers.distributed import same_everywhere, summed

_SMALLEST_SHARE = 1e-6  # of the largest variance: a direction that hardly varies is not blown up without bound


@torch.no_grad()
def whitening(rows_NC: torch.Tensor, deviation: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map ``rows @ matrix.T + offset`` that whitens the rows of all processes together.

    Args:
        rows_NC: (N, C) float32 latents of this process.
        deviation: standard deviation of each channel afterwards.

    Returns:
        matrix (C, C) and offset (C,), float32, the same on every process.
    """
    rows = rows_NC.double()
    count = summed(rows.new_tensor(float(len(rows))))
    mean_C = summed(rows.sum(0)) / count
    covariance_CC = summed((rows - mean_C).T @ (rows - mean_C)) / count
    variances_C, directions_CC = torch.linalg.eigh(covariance_CC)
    floor = (variances_C.amax() * _SMALLEST_SHARE).clamp_min(1e-12)
    matrix_CC = deviation * (directions_CC * variances_C.clamp_min(floor).rsqrt()) @ directions_CC.T
    same_everywhere(matrix_CC)  # the sums are equal already; a decomposition might not be on unlike machines
    return matrix_CC.float(), -(matrix_CC @ mean_C).float()
