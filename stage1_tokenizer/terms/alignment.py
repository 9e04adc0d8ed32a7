"""Alignment of latents with frozen image features, which makes codes easier to predict.

Source: Yao and Wang 2025, arXiv:2501.01423, eq. 2: the marginal cosine similarity, position by position.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from foundation.randomness import derive_seed
from stage1_tokenizer.terms.base import Metrics, Seen, Term, TermContext
from stage1_tokenizer.terms.config import AlignmentConfig
from stage1_tokenizer.terms.lite0 import open_network, unit_maps


class Alignment(Term):
    """Mean over positions of relu(1 - margin - cosine) between projected latents and features, from 0 to 2."""

    judges_coding = True
    config: AlignmentConfig

    def __init__(self, config: AlignmentConfig, context: TermContext) -> None:
        super().__init__(config, context)
        self.network = open_network(config.weights, config.side, context)
        self.frozen = {"lite0": self.network}
        self.widths = [self.network.channels[stage] for stage in config.stages]
        tokenizer = context.model.config
        channels = {"latents": tokenizer.quantizer.latent_width, "quantized": tokenizer.latent_channels}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(context.seed, "alignment"))
            self.projections = nn.ModuleDict(
                {name: _projection(channels[name], config.hidden, sum(self.widths)) for name in self._aligned()}
            )
        self.trained = self.projections

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, Metrics]:
        """See the base class."""
        with torch.no_grad():
            maps = unit_maps(self.network, seen.images_BCYX, self.config.stages, self.config.side)
            height, width = seen.latents_BCHW.shape[2:]
            targets = [F.interpolate(each, (height, width), mode="bilinear", antialias=True) for each in maps]
        sources = {"latents": seen.latents_BCHW, "quantized": seen.inputs_BCHW}
        cosines = []
        with torch.autocast(seen.images_BCYX.device.type, enabled=False):
            for name in self._aligned():
                projected_BCHW = self.projections[name](sources[name].float())
                for mine, target in zip(projected_BCHW.split(self.widths, 1), targets, strict=True):
                    cosines.append(F.cosine_similarity(mine, target, dim=1))
        cosine = torch.stack(cosines)
        loss = F.relu(1 - self.config.margin - cosine).mean()
        return loss, {"cosine": cosine.detach().mean()}

    def _aligned(self) -> list[str]:
        return ["latents", "quantized"] if self.config.of == "both" else [self.config.of]


def _projection(channels: int, hidden: int, width: int) -> nn.Module:
    if not hidden:
        return nn.Conv2d(channels, width, 1)
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, width, 1))
