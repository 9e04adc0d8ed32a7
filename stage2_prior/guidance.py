"""Classifier-free guidance: how far each code's distribution is pushed towards its class.

Source: Ho and Salimans 2022, arXiv:2207.12598, Eq. 6; the schedules name theirs.
"""

from __future__ import annotations

import numpy as np
import torch

from stage2_prior.sampling import SamplingConfig


def guidance_scales(sampling: SamplingConfig, n_codes: int) -> np.ndarray:
    """The scale of each of T codes, (T,) float64; code t of T, s the ``guidance_scale``.

    constant
        s.
    linear
        1 + (s - 1) * t / (T - 1): Chang et al. 2023, arXiv:2301.00704, section 2.7, over the tokens of an image.
    power-cosine
        1 + (s - 1) * (1 - cos(pi * (t / T) ** p)) / 2 with p the ``schedule_power``: Yu et al. 2024,
        arXiv:2411.00776, appendix; the first codes are drawn freely, the last ones close to the class.
    step
        1 for the first ``schedule_start`` of the codes, then s.

    Outside ``guidance_interval`` the scale is 1 (Kynkaanniemi et al. 2024, arXiv:2404.07724, section 3, with the share
    of codes drawn in place of the noise level).
    """
    share_T = np.arange(n_codes) / n_codes
    if sampling.schedule == "linear":
        strength_T = np.linspace(0.0, 1.0, n_codes) if n_codes > 1 else np.ones(1)
    elif sampling.schedule == "power-cosine":
        strength_T = (1 - np.cos(np.pi * share_T**sampling.schedule_power)) / 2
    elif sampling.schedule == "step":
        strength_T = (share_T >= sampling.schedule_start).astype(np.float64)
    else:
        strength_T = np.ones(n_codes)
    scales_T = np.where(strength_T == 1, sampling.guidance_scale, 1 + (sampling.guidance_scale - 1) * strength_T)
    first, last = sampling.guidance_interval
    return np.where((share_T >= first) & (share_T < last), scales_T, 1.0)


def guide(conditional_BV: torch.Tensor, unconditional_BV: torch.Tensor, scale: float) -> torch.Tensor:
    """Logits of the guided distribution, u + scale * (c - u), written as an interpolation between the two.

    Scale 1 gives the conditional logits and scale 0 the unconditional ones, exactly. Both must be finite: of a prior
    whose codebooks differ in size, pass ``PriorModel.possible`` ones.
    """
    return torch.lerp(unconditional_BV, conditional_BV, scale)
