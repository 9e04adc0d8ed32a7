"""Models of installed packages with random weights, in the folders and under the names of the published systems.

Each case is a folder like a recorded fixture: ``config.json``, ``state.safetensors``, ``io.safetensors``. The outputs
are those of the packages: transformers has the encoders and decoders of taming and LlamaGen (Chameleon's and Janus's
tokenizers), diffusers its VQModel and latent-diffusion's autoencoder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

State = dict[str, torch.Tensor]
MARGIN = 5e-4
"""least distance between the nearest and the second nearest code, above any rounding"""
_ENDS = {"mid.block_1": "mid.0", "mid.attn_1": "mid.1", "mid.block_2": "mid.2"}
_CNN = {"ch": 32, "dropout": 0.0, "in_channels": 3, "out_ch": 3, "double_z": False}


def write_case(folder: Path, config: dict[str, Any], state: State, io: State) -> None:
    """A case as a folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, folder / "state.safetensors")
    save_file({key: value.detach().clone().contiguous() for key, value in io.items()}, folder / "io.safetensors")


def randomize(module: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Give every parameter a random value, those that usually begin as zero or one too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(module.named_parameters()):
            noise = torch.rand(value.shape, generator=generator) * 2 - 1
            if value.ndim == 1:
                value.copy_(1 + 0.25 * noise if name.endswith("weight") else 0.1 * noise)
            else:
                value.copy_(gain * math.sqrt(3 / math.prod(value.shape[1:])) * noise)


class Networks:
    """An encoder and a decoder of transformers, their 1 x 1 convolutions, and the names of one published system."""

    def __init__(
        self,
        ch_mult: list[int],
        z_channels: int,
        width: int,
        *,
        blocks: int,
        attention: bool,
        seed: int | None,
        base: int = 32,
    ) -> None:
        from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
        from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
        from transformers.models.janus.configuration_janus import JanusVQVAEConfig
        from transformers.models.janus.modeling_janus import JanusVQVAE

        common = {"embed_dim": width, "latent_channels": z_channels, "base_channels": base, "num_res_blocks": blocks}
        common |= {"channel_multiplier": ch_mult, "num_embeddings": 2}
        nominal = 2 ** (len(ch_mult) - 1)  # so that attention is at side 1 of the encoder: its lowest level, or nowhere
        resolutions = {"resolution": nominal, "attn_resolutions": [1] if attention else []}
        self.encoding = ChameleonVQVAE(ChameleonVQVAEConfig(**common, **resolutions)).eval()
        self.decoding = JanusVQVAE(JanusVQVAEConfig(**common)).eval()
        if not attention:
            self.decoding.decoder.up[0].attn = nn.ModuleList()
        if seed is not None:
            randomize(self.encoding, seed)
            randomize(self.decoding, seed + 1)
        self.n_levels = len(ch_mult)

    @torch.no_grad()
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoding.quant_conv(self.encoding.encoder(images))

    @torch.no_grad()
    def decode(self, vectors_BCHW: torch.Tensor) -> torch.Tensor:
        return self.decoding.decoder(self.decoding.post_quant_conv(vectors_BCHW))

    def state(self, rename: Callable[[str, int], str]) -> State:
        """Weights under a system's names."""
        parts = {"encoder": self.encoding, "quant_conv": self.encoding}
        parts |= {"decoder": self.decoding, "post_quant_conv": self.decoding}
        return {
            rename(f"{part}.{name}", self.n_levels): value
            for part, model in parts.items()
            for name, value in getattr(model, part).state_dict().items()
        }


def taming_name(name: str, n_levels: int) -> str:
    """taming counts a decoder's levels from the highest resolution, Janus from the lowest."""
    return re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{n_levels - 1 - int(found[1])}", name)


def llamagen_name(name: str, n_levels: int) -> str:
    """Janus's name of a tensor => LlamaGen's."""
    for theirs, ours in _ENDS.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    name = re.sub(r"^(encoder|decoder)\.(down|up)\.(\d+)\.", r"\1.conv_blocks.\3.", name)
    return re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", name)


def nearest(latents_BCHW: torch.Tensor, codebook_KC: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Nearest codes, (B, H, W), and by how much the second nearest is farther away, at least."""
    flat = latents_BCHW.movedim(1, -1).flatten(0, -2).double()
    distances = torch.cdist(flat, codebook_KC.double()).square()
    two = distances.topk(2, largest=False).values
    shape = (latents_BCHW.shape[0], *latents_BCHW.shape[2:])
    return distances.argmin(1).view(shape), float((two[:, 1] - two[:, 0]).min())


def codebook_of(latents_BCHW: torch.Tensor, n_codes: int, seed: int, *, normalize: bool = False) -> torch.Tensor:
    """A codebook near the latents, so that many of its codes occur."""
    generator = torch.Generator().manual_seed(seed)
    flat = latents_BCHW.movedim(1, -1).flatten(0, -2)
    rows = flat[torch.randint(len(flat), (n_codes,), generator=generator)]
    table = rows + 0.5 * flat.std() * torch.randn(rows.shape, generator=generator)
    return F.normalize(table, dim=1) if normalize else table


def lookup(codes_BHW: torch.Tensor, codebook_KC: torch.Tensor) -> torch.Tensor:
    """(B, H, W) => (B, C, H, W)."""
    return F.embedding(codes_BHW, codebook_KC).movedim(-1, 1).contiguous()


def images(size: list[int], seed: int) -> torch.Tensor:
    """Two images of coarse and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, size[0] // 8, size[1] // 8, generator=generator) * 2 - 1
    fine = torch.rand(2, 3, *size, generator=generator) * 2 - 1
    return 0.7 * F.interpolate(coarse, size=size) + 0.3 * fine


def coded(latents: torch.Tensor, n_codes: int, seed: int, *, normalize: bool = False) -> tuple[torch.Tensor, State]:
    """A codebook with clear margins, and the codes and vectors that it gives.

    LlamaGen normalizes latents and codebook; the nearest of unit vectors is then that of the normalized latents.
    """
    shown = F.normalize(latents, dim=1) if normalize else latents
    for attempt in range(100):
        codebook = codebook_of(shown, n_codes, seed + attempt, normalize=normalize)
        codes, margin = nearest(shown, codebook)
        if margin >= MARGIN:
            vectors = lookup(codes, codebook)
            random = torch.randint(n_codes, codes.shape, generator=torch.Generator().manual_seed(seed))
            return codebook, {"latent": latents, "codes": codes, "quant": vectors, "random_codes": random}
    raise AssertionError("no codebook has clear margins")


def llamagen_vq(root: Path) -> None:
    """LlamaGen's tokenizers."""
    for seed, (name, size, multipliers, z_channels, n_codes, normalize) in enumerate(
        [
            ("vq16_tiny", [64, 96], [1, 1, 1, 1, 2], 32, 64, True),
            ("vq8_tiny", [48, 32], [1, 1, 1, 2], 16, 64, True),
            ("vq16_nol2_tiny", [64, 64], [1, 1, 1, 1, 2], 32, 64, False),
            ("vq16_ch32", [96, 64], [1, 1, 2, 2, 4], 256, 1024, True),
        ],
        start=11,
    ):
        networks = Networks(multipliers, z_channels, 8, blocks=2, attention=True, seed=seed)
        image = images(size, seed)
        codebook, io = coded(networks.latents(image), n_codes, seed, normalize=normalize)
        io |= {"image": image, "recon": networks.decode(io["quant"])}
        io["random_recon"] = networks.decode(lookup(io["random_codes"], codebook))
        scale = torch.linspace(0.5, 2, n_codes)[:, None] if normalize else 1  # stored rows need no unit length
        state = {**networks.state(llamagen_name), "quantize.embedding.weight": codebook * scale}
        state["quantize.codebook_used"] = torch.zeros(65536)
        config = {"codebook_size": n_codes, "codebook_embed_dim": 8, "codebook_l2_norm": normalize, "ch": 32}
        config |= {"z_channels": z_channels, "num_res_blocks": 2}
        config |= {"encoder_ch_mult": multipliers, "decoder_ch_mult": multipliers}
        write_case(root / "llamagen_vq" / name, config, state, io)


def taming_vq(root: Path) -> None:
    """taming's VQGAN with nearest codes, and with a logit for each code."""
    for name, size, multipliers, n_codes, side in (
        ("vqgan_f16_tiny", [64, 96], [1, 1, 1, 2, 2], 32, 16),
        ("gumbel_f8_tiny", [48, 32], [1, 1, 2, 2], 64, 32),
    ):
        networks = Networks(multipliers, 16, 16, blocks=1, attention=True, seed=n_codes)
        image = images(size, n_codes)
        codebook, io = coded(networks.latents(image), n_codes, n_codes)
        state, seed = networks.state(taming_name), n_codes
        if name == "gumbel_f8_tiny":
            state |= {"quantize.embed.weight": codebook, **_logits(io, n_codes, codebook)}
        else:
            state["quantize.embedding.weight"] = codebook
            io["quant_loss"] = 1.25 * F.mse_loss(io["quant"], io["latent"])
        state["loss.discriminator.weight"] = torch.zeros(1)
        io |= {"image": image, "recon": networks.decode(io["quant"])}
        io["random_recon"] = networks.decode(lookup(io["random_codes"], codebook))
        ddconfig = {**_CNN, "z_channels": 16, "resolution": 256, "ch_mult": multipliers, "num_res_blocks": 1}
        config = {"n_embed": n_codes, "embed_dim": 16, "ddconfig": {**ddconfig, "attn_resolutions": [side]}}
        write_case(root / "taming" / name, {**config, "seed": seed}, state, io)


def _logits(io: State, n_codes: int, codebook: torch.Tensor) -> State:
    """A 1 x 1 convolution to a logit for each code, and the codes that it gives."""
    for seed in range(100):
        layer = nn.Conv2d(16, n_codes, 1)
        randomize(layer, seed)
        logits = layer(io["latent"]).detach()
        two = logits.topk(2, dim=1).values
        if float((two[:, 0] - two[:, 1]).min()) >= MARGIN:
            io |= {"code_logits": logits, "codes": logits.argmax(1)}
            io["quant"] = lookup(io["codes"], codebook)
            return {f"quantize.proj.{last}": value for last, value in layer.state_dict().items()}
    raise AssertionError("no logits have clear margins")


def rqvae(root: Path) -> None:
    """RQ-VAE: each depth takes the code nearest to what is left."""
    for name, size, depth, shared in (("rq_separate_tiny", [32, 32], 3, False), ("rq_shared_tiny", [64, 64], 4, True)):
        networks = Networks([1, 1, 1, 2], 16, 16, blocks=1, attention=True, seed=depth)
        image = images(size, depth)
        latents = networks.latents(image)
        tables, io = _residual(latents, depth, shared)
        io |= {"image": image, "latent": latents.movedim(1, -1), "recon": networks.decode(_sum(io["codes"], tables))}
        io["partial_recon_depth2"] = networks.decode(_sum(io["codes"][..., :2], tables))
        io["random_codes"] = torch.randint(40, io["codes"].shape, generator=torch.Generator().manual_seed(depth))
        io["random_recon"] = networks.decode(_sum(io["random_codes"], tables))
        parts = [_sum(io["codes"][..., : k + 1], tables) for k in range(depth)]
        io |= {f"quant_depth{k + 1}": part.movedim(1, -1) for k, part in enumerate(parts)}
        io["quant"] = io[f"quant_depth{depth}"]
        io["commitment_loss"] = torch.stack([F.mse_loss(latents, part) for part in parts]).mean()
        padded = {f"quantizer.codebooks.{i}.weight": F.pad(table, (0, 0, 0, 1)) for i, table in enumerate(tables)}
        running = {f"quantizer.codebooks.{i}.cluster_size_ema": torch.zeros(40) for i in range(depth)}
        side = size[0] // 8
        ddconfig = {**_CNN, "z_channels": 16, "resolution": size[0], "ch_mult": [1, 1, 1, 2], "num_res_blocks": 1}
        config = {"ddconfig": {**ddconfig, "attn_resolutions": [side]}, "embed_dim": 16, "n_embed": 40}
        config |= {"code_shape": [side, side, depth], "shared_codebook": shared}
        write_case(root / "rqvae" / name, config, {**networks.state(taming_name), **padded, **running}, io)


def _sum(codes_BHWD: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
    depths = zip(codes_BHWD.unbind(-1), tables, strict=False)
    return torch.stack([lookup(codes, table) for codes, table in depths]).sum(0)


def _residual(latents: torch.Tensor, depth: int, shared: bool) -> tuple[list[torch.Tensor], State]:
    for seed in range(500):
        left, tables, codes, margins = latents, [], [], []
        for k in range(depth):
            tables.append(tables[0] if shared and k else codebook_of(left, 40, seed + 1000 * k))
            found, margin = nearest(left, tables[k])
            left = left - lookup(found, tables[k])
            codes.append(found)
            margins.append(margin)
        if min(margins) >= MARGIN:
            return tables, {"codes": torch.stack(codes, -1)}
    raise AssertionError("no codebooks have clear margins")
