"""The yardstick of ``bench_tokenizer.py``: the same network in plain torch modules, contiguous memory, N x V distances.

Written as research code of the VQGAN family usually is (arXiv:2012.09841): the norm, the swish and the convolution
are separate modules, and the nearest code is found in a full matrix of distances.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        norms = (nn.GroupNorm(groups, channels, eps=1e-6) for channels in (channels_in, channels_out))
        convs = (nn.Conv2d(channels, channels_out, 3, padding=1) for channels in (channels_in, channels_out))
        layers = [layer for norm, conv in zip(norms, convs, strict=True) for layer in (norm, nn.SiLU(), conv)]
        self.body = nn.Sequential(*layers)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.skip(x_BCHW) + self.body(x_BCHW)


class _Attention(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x_BCHW)
        q_BCT, k_BCT, v_BCT = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))
        shares_BTT = torch.softmax(q_BCT.mT @ k_BCT * q_BCT.shape[1] ** -0.5, dim=2)
        return x_BCHW + self.out((v_BCT @ shares_BTT.mT).view_as(x_BCHW))


class _NearestCode(nn.Module):
    def __init__(self, n_codes: int, width: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(n_codes, width)

    def forward(self, z_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z_BHWC = z_BCHW.float().permute(0, 2, 3, 1)
        z_NC, codes_VC = z_BHWC.reshape(-1, z_BHWC.shape[-1]), self.codebook.weight
        distances_NV = z_NC.square().sum(1, keepdim=True) + codes_VC.square().sum(1) - 2 * z_NC @ codes_VC.T
        chosen = self.codebook(distances_NV.argmin(1)).view(z_BHWC.shape)
        loss = F.mse_loss(chosen, z_BHWC.detach()) + 0.25 * F.mse_loss(z_BHWC, chosen.detach())
        return (z_BHWC + (chosen - z_BHWC).detach()).permute(0, 3, 1, 2), loss


class _RoundLevels(nn.Module):
    """Each channel squashed and rounded to whole numbers (arXiv:2309.15505), gradients passed straight through."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("reach", torch.tensor([(level - 1) / 2 for level in levels]).view(1, -1, 1, 1))

    def forward(self, z_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bounded = z_BCHW.float().tanh() * self.reach
        return (bounded + (bounded.round() - bounded).detach()) / self.reach, z_BCHW.new_zeros(())


def plain_tokenizer(config: TokenizerConfig) -> nn.Module:
    """A model that maps (B, 3, Y, X) images to (reconstruction, quantizer loss), with the layers of ``config``."""
    return _PlainTokenizer(config)


class _PlainTokenizer(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        networks = config.networks
        assert isinstance(networks, VQGANNetworks)
        groups, fold, widths = networks.norm_groups, networks.patch_size, networks.widths
        down: list[nn.Module] = [nn.PixelUnshuffle(fold), nn.Conv2d(3 * fold**2, widths[0], 3, padding=1)]
        channels = widths[0]
        for i, width in enumerate(widths):
            down += _blocks(channels, width, networks.n_res_blocks, groups)
            channels = width
            if i < len(widths) - 1:
                down += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2)]
        down += [*_middle(channels, groups), *_head(channels, config.latent_channels, groups)]
        up: list[nn.Module] = [nn.Conv2d(config.latent_channels, channels, 3, padding=1), *_middle(channels, groups)]
        for i, width in reversed(list(enumerate(widths))):
            up += _blocks(channels, width, networks.n_res_blocks + 1, groups)
            channels = width
            if i > 0:
                up += [nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(width, width, 3, padding=1)]
        up += [*_head(channels, 3 * fold**2, groups), nn.PixelShuffle(fold)]
        codes = config.quantizer
        levels = getattr(codes, "levels", None)
        self.quantizer = _NearestCode(codes.codebook_size, codes.width) if levels is None else _RoundLevels(levels)
        self.encoder = nn.Sequential(*down, nn.Conv2d(config.latent_channels, codes.width, 1))
        self.decoder = nn.Sequential(nn.Conv2d(codes.width, config.latent_channels, 1), *up)

    def forward(self, images_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = self.encoder(images_BCYX)
        with torch.autocast(images_BCYX.device.type, enabled=False):
            quantized, loss = self.quantizer(latents)
        return self.decoder(quantized).float(), loss


def _blocks(channels_in: int, channels_out: int, n_blocks: int, groups: int) -> list[nn.Module]:
    return [_Residual(channels_in if i == 0 else channels_out, channels_out, groups) for i in range(n_blocks)]


def _middle(channels: int, groups: int) -> list[nn.Module]:
    return [_Residual(channels, channels, groups), _Attention(channels, groups), _Residual(channels, channels, groups)]


def _head(channels: int, channels_out: int, groups: int) -> list[nn.Module]:
    return [nn.GroupNorm(groups, channels, eps=1e-6), nn.SiLU(), nn.Conv2d(channels, channels_out, 3, padding=1)]
