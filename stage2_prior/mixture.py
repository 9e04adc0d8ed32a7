"""Prior of a continuous tokenizer's latents: at each position a mixture of Gaussians over its channels.

Source: Tschannen et al. 2023, "GIVT: generative infinite-vocabulary transformers", arXiv:2312.02116, section 3.2.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from foundation.codes.latents import bits_of, values_of
from foundation.codes.spec import CodeSpec
from foundation.config import require
from foundation.training.linear import Linear
from stage2_prior.config import PriorConfig
from stage2_prior.head_loss import HeadLoss, Terms
from stage2_prior.transformer import TransformerPrior

_LOG_SCALE = (-7.0, 4.0)
"""of standardised channels; a mixture may not collapse onto one training latent"""
_STANDARDIZED = 4096
"""images whose latents say mean and variance"""
_LARGEST = 6e4
"""of float16"""


class Mixture(NamedTuple):
    """Mixtures of K Gaussians with independent channels, of standardised latents.

    Attributes:
        log_weights_NK: normalised.
        means_NKC, log_scales_NKC: of each channel.
    """

    log_weights_NK: torch.Tensor
    means_NKC: torch.Tensor
    log_scales_NKC: torch.Tensor

    def to(self, device: torch.device) -> Mixture:
        """On a device."""
        return Mixture(*(each.to(device) for each in self))

    def log_density(self, values_NMC: torch.Tensor) -> torch.Tensor:
        """Ln p of M values of each mixture, (N, M)."""
        distance_NMKC = (values_NMC.unsqueeze(2) - self.means_NKC.unsqueeze(1)) * (
            -self.log_scales_NKC
        ).exp().unsqueeze(1)
        of_gaussian_NMK = -0.5 * distance_NMKC.square().sum(-1) - self.log_scales_NKC.sum(-1).unsqueeze(1)
        constant = -0.5 * math.log(2 * math.pi) * values_NMC.shape[-1]
        return torch.logsumexp(self.log_weights_NK.unsqueeze(1) + of_gaussian_NMK, -1) + constant

    def sample(self, uniforms_NMS: torch.Tensor, temperature: float) -> torch.Tensor:
        """M values of each mixture, (N, M, C).

        Args:
            uniforms_NMS: float64 in [0, 1), S = 1 + C: for the Gaussian, and for each channel.
            temperature: each Gaussian's density and the weights are raised to the power of 1 / it; 0 takes the mean of
                the Gaussian with the most weight.
        """
        if temperature == 0:
            best_N1 = self.log_weights_NK.argmax(1, keepdim=True)
            chosen_NM = best_N1.expand(-1, uniforms_NMS.shape[1])
        else:
            ends_NK = (self.log_weights_NK.double() / temperature).softmax(1).cumsum(1)
            chosen_NM = torch.searchsorted(ends_NK, uniforms_NMS[..., 0].contiguous(), right=True)
            chosen_NM = chosen_NM.clamp_max(ends_NK.shape[1] - 1)
        index_NMC = chosen_NM.unsqueeze(2).expand(-1, -1, self.means_NKC.shape[2])
        means_NMC, scales_NMC = self.means_NKC.gather(1, index_NMC), self.log_scales_NKC.exp().gather(1, index_NMC)
        normal_NMC = torch.special.ndtri(uniforms_NMS[..., 1:].clamp(2**-53, 1 - 2**-53)).float()
        return means_NMC + scales_NMC * normal_NMC * math.sqrt(temperature)


class MixturePrior(TransformerPrior):
    """p(latent) = prod_s p(z_s | class, z before s), z_s the C channels of a position.

    Codes are the bits of float16 numbers: ``foundation.codes.latents``. The likelihood is a density: its bits may be
    negative, and depend on the latents' scale.

    Args:
        config: of the transformer; ``mixtures`` Gaussians.
        spec: of one grid of latents.

    Attributes:
        shift_C, scale_C: what is taken from the latents, and what they are divided by; see ``standardize``.

    Raises:
        ConfigError: a masked prior.
    """

    def __init__(self, config: PriorConfig, spec: CodeSpec) -> None:
        self.n_channels = spec.levels[0].depth
        expected, fix = "raster or any for continuous latents", "set prior.model.order"
        require(config.order != "masked", "prior.model.order", config.order, expected, fix)
        blocks = "llama or gpt for continuous latents"
        require(config.is_transformer, "prior.model.block", config.block, blocks)
        expected = "false for continuous latents"
        require(not config.guidance_input, "prior.model.guidance_input", config.guidance_input, expected)
        super().__init__(config, spec)
        self.register_buffer("shift_C", torch.zeros(self.n_channels))
        self.register_buffer("scale_C", torch.ones(self.n_channels))

    shift_C: torch.Tensor
    scale_C: torch.Tensor

    def _spec_of_steps(self, spec: CodeSpec) -> CodeSpec:
        """One step for each position."""
        level = dataclasses.replace(spec.levels[0], depth=1, codebook_size=1)
        return dataclasses.replace(spec, levels=(level,), latents=False)

    def _build_codes(self, d_model: int) -> None:
        self.latent_projection = nn.Linear(self.n_channels, d_model)

    def _build_head(self, d_model: int) -> None:
        self.vocab_size = self.config.mixtures * (1 + 2 * self.n_channels)
        self.head = Linear(d_model, self.vocab_size)

    def _initialize(self) -> None:
        """As of the transformer; the Gaussians start apart from each other."""
        super()._initialize()
        nn.init.normal_(self.latent_projection.weight, std=0.5)
        nn.init.zeros_(self.latent_projection.bias)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        n = self.config.mixtures
        nn.init.normal_(self.head.bias[n : n * (1 + self.n_channels)].data, std=0.5)

    def prepare(self, codes_NT: np.ndarray) -> None:
        """Standardise by the first training latents."""
        self.standardize(torch.from_numpy(np.asarray(codes_NT[:_STANDARDIZED]).astype(np.int64)))

    @torch.no_grad()
    def standardize(self, codes_BT: torch.Tensor) -> None:
        """Take the mean and standard deviation of each channel from training latents."""
        values = values_of(codes_BT.to(self.shift_C.device)).view(-1, self.n_channels).double()
        self.shift_C.copy_(values.mean(0))
        self.scale_C.copy_(values.std(0, correction=0).clamp_min(1e-6))

    def in_steps(self, codes_BT: torch.Tensor) -> torch.Tensor:
        """(B, T) => (B, S, C)."""
        return codes_BT.unflatten(1, (-1, self.n_channels))

    def orders_in_steps(self, orders_BT: torch.Tensor) -> torch.Tensor:
        """Orders of all channels => of positions, (B, S)."""
        return orders_BT[:, :: self.n_channels] // self.n_channels

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., C) => standardised latents, float32."""
        return (values_of(codes) - self.shift_C) / self.scale_C

    def codes(self, values: torch.Tensor) -> torch.Tensor:
        """Standardised latents (..., C) => codes, int64."""
        latents = values.float() * self.scale_C + self.shift_C
        return bits_of(latents.clamp(-_LARGEST, _LARGEST).to(torch.float16))

    def _vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, P, C) codes => (B, P, E)."""
        return self.latent_projection(self.values(codes).to(self.latent_projection.weight.dtype))

    def mixture(self, hidden_NE: torch.Tensor) -> Mixture:
        """What hidden states predict."""
        n, n_values = self.config.mixtures, self.config.mixtures * self.n_channels
        with torch.autocast(hidden_NE.device.type, enabled=False):  # bf16 would round means to a part of their scale
            parameters = F.linear(hidden_NE.float(), self.head.weight.float(), self.head.bias.float())
        log_weights, means, log_scales = parameters.split([n, n_values, n_values], 1)
        shape = (n, self.n_channels)
        scales_NKC = log_scales.unflatten(1, shape).clamp(*_LOG_SCALE)
        return Mixture(log_weights.log_softmax(1), means.unflatten(1, shape), scales_NKC)

    def _nats(self, hidden_NE: torch.Tensor, codes_NC: torch.Tensor) -> torch.Tensor:
        """-ln p of latents, (N,)."""
        values_N1C = self.values(codes_NC).unsqueeze(1)
        return self.scale_C.log().sum() - self.mixture(hidden_NE).log_density(values_N1C).squeeze(1)

    def nll_of(self, hidden_NE: torch.Tensor, codes: torch.Tensor, size_N: torch.Tensor | None) -> torch.Tensor:
        """See ``PriorModel.nll_of``; of all channels of a position together."""
        return self._nats(hidden_NE, codes)

    def loss_of(
        self,
        hidden_NE: torch.Tensor,
        codes: torch.Tensor,
        size_N: torch.Tensor | None,
        terms: Terms,
        trained_NE: torch.Tensor | None = None,
    ) -> HeadLoss:
        """Mean nats by channel; z-loss and smoothing are for codes alone."""
        nll = self._nats(hidden_NE, codes).mean() / self.n_channels
        return HeadLoss(nll, nll.detach(), torch.zeros_like(nll.detach()))
