"""Cases of diffusers' VQModel and AutoencoderKL, as in ``live_models``; of these, latent-diffusion's names too."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.live_models import coded, images, lookup, randomize, write_case

_KL = {"embed_dim": 4, "scaling_factor": 0.18215}


def diffusers_vq(root: Path) -> None:
    """diffusers' VQModel, with and without attention in a level."""
    from diffusers import VQModel

    for seed, (name, size, last, latent_channels, groups, width) in enumerate(
        [("vq_f4_tiny", [32, 48], "", 3, 32, 3), ("vq_f4_attn_tiny", [24, 24], "Attn", 8, 16, 4)], start=51
    ):
        arguments = {
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", f"{last}DownEncoderBlock2D"],
            "up_block_types": [f"{last}UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
            "block_out_channels": [32, 32, 64],
            **{"layers_per_block": 1, "latent_channels": latent_channels, "num_vq_embeddings": 48},
            **{"norm_num_groups": groups, "vq_embed_dim": width, "scaling_factor": 0.18215},
        }
        model = VQModel(**arguments).eval()
        randomize(model, seed)
        image = images(size, seed)
        with torch.no_grad():
            latents = model.encode(image).latents
            codebook, io = coded(latents, 48, seed)
            model.quantize.embedding.weight.copy_(codebook)
            found = model.quantize(latents)[2][2].view(io["codes"].shape)
            assert torch.equal(found, io["codes"])
            io |= {"image": image, "recon": model.decode(latents).sample}
            vectors = lookup(io["random_codes"], codebook)
            io["random_recon"] = model.decode(vectors, force_not_quantize=True).sample
        write_case(root / "diffusers_vq" / name, {"args": arguments}, model.state_dict(), io)


def sd_kl(root: Path) -> None:
    """latent-diffusion's autoencoder, computed by diffusers."""
    from diffusers import AutoencoderKL

    multipliers = [1, 1, 2, 2]
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32 * each for each in multipliers],
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=_KL["scaling_factor"],
    ).eval()
    randomize(model, 41)
    image, generator = images([48, 64], 41), torch.Generator().manual_seed(41)
    with torch.no_grad():
        latents = model.encode(image).latent_dist
        noise, random = (torch.randn(latents.mean.shape, generator=generator) for _ in range(2))
        sample = latents.mean + latents.std * noise
        io = {"image": image, "moments": latents.parameters, "mean": latents.mean, "logvar": latents.logvar}
        io |= {"std": latents.std, "kl": latents.kl(), "noise": noise, "sample": sample, "random_latent": random}
        io |= {"scaled_latent": latents.mean * model.config.scaling_factor, "recon": model.decode(latents.mean).sample}
        io["recon_sample"] = model.decode(sample).sample
        io["random_recon"] = model.decode(random / model.config.scaling_factor).sample
    ddconfig = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32}
    ddconfig |= {"ch_mult": multipliers, "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    state = {latent_diffusion_name(key, 4): as_kernel(key, value) for key, value in model.state_dict().items()}
    state["loss.logvar"] = torch.zeros(1)
    write_case(root / "sd_kl" / "kl_f8_tiny", {**_KL, "ddconfig": ddconfig, "norm_num_groups": 32}, state, io)
    save_file(model.state_dict(), root / "sd_kl" / "kl_f8_tiny" / "state_diffusers.safetensors")


def as_kernel(name: str, value: torch.Tensor) -> torch.Tensor:
    """Attention is a linear map in diffusers, a 1 x 1 convolution in latent-diffusion."""
    return value[:, :, None, None] if ".attentions." in name and value.ndim == 2 else value


def latent_diffusion_name(name: str, n_levels: int) -> str:
    """diffusers' name of a tensor => latent-diffusion's."""
    name = re.sub(r"^(encoder)\.down_blocks\.(\d+)\.resnets\.", r"\1.down.\2.block.", name)
    name = re.sub(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", name)
    reverse = re.match(r"^decoder\.up_blocks\.(\d+)\.", name)
    if reverse:
        name = name.replace(reverse[0], f"decoder.up.{n_levels - 1 - int(reverse[1])}.")
        name = name.replace(".resnets.", ".block.").replace(".upsamplers.0.", ".upsample.")
    name = name.replace("mid_block.resnets.0.", "mid.block_1.").replace("mid_block.resnets.1.", "mid.block_2.")
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("conv_norm_out", "norm_out").replace("group_norm", "norm").replace("to_out.0", "proj_out")
    return re.sub(r"\.to_([qkv])\.", r".\1.", name)
