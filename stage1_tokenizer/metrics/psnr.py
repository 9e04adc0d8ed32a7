"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch


def psnr(images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,).

    Both arguments are in [-1, 1] (reconstructions are clamped to it), so the peak-to-peak range is 2. An exact
    reconstruction counts as 100 dB.
    """
    error = (images_BCYX.float() - reconstructions_BCYX.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return (10 * torch.log10(4.0 / error.clamp_min(4e-10))).clamp_max(100.0)
