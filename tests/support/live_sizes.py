"""Names and shapes of published models at their full size, from models of installed packages without memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from support.live_diffusers import as_kernel, latent_diffusion_name
from support.live_models import Networks, State, llamagen_name, taming_name
from support.live_priors import llamagen_state

PUBLISHED = {
    "vq_ds16_c2i": "llamagen_vq",
    "vq_ds8_c2i": "llamagen_vq",
    "vqgan_imagenet_f16_1024": "taming",
    "vqgan_imagenet_f16_16384": "taming",
    "vqgan_gumbel_f8": "taming",
    "kl_f8_compvis": "sd_kl",
    "kl_f8_diffusers": "sd_kl",
    "c2i_B_256": "llamagen_gpt",
    "c2i_L_384": "llamagen_gpt",
}
_F16, _F8 = [1, 1, 2, 2, 4], [1, 2, 2, 4]


def write_manifest(root: Path, name: str) -> Path:
    """Names, shapes and types of one published file, as a recorded manifest has them."""
    with torch.device("meta"):
        system = PUBLISHED[name]
        makers = {"llamagen_vq": _llamagen_vq, "taming": _taming, "sd_kl": _sd_kl, "llamagen_gpt": _llamagen_gpt}
        state = makers[system](name)
    about = {
        key: {"shape": [*each.shape], "dtype": str(each.dtype).removeprefix("torch.")} for key, each in state.items()
    }
    path = root / system / f"full_manifest_{name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(about), encoding="utf-8")
    return path


def _networks(ch_mult: list[int], width: int) -> Networks:
    return Networks(ch_mult, 256, width, blocks=2, attention=True, base=128, seed=None)


def _llamagen_vq(name: str) -> State:
    state = _networks(_F16 if "ds16" in name else _F8, 8).state(llamagen_name)
    return {**state, "quantize.embedding.weight": torch.empty(16384, 8), "quantize.codebook_used": torch.empty(65536)}


def _taming(name: str) -> State:
    if "gumbel" in name:
        own = {"quantize.embed.weight": torch.empty(8192, 256), "quantize.proj.bias": torch.empty(8192)}
        own["quantize.proj.weight"] = torch.empty(8192, 256, 1, 1)
        return {**_networks([1, 1, 2, 4], 256).state(taming_name), **own}
    own = {"quantize.embedding.weight": torch.empty(int(name.rpartition("_")[2]), 256)}
    return {**_networks(_F16, 256).state(taming_name), **own}


def _sd_kl(name: str) -> State:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=4,
    )
    if "diffusers" in name:
        return model.state_dict()
    return {latent_diffusion_name(key, 4): as_kernel(key, value) for key, value in model.state_dict().items()}


def _llamagen_gpt(name: str) -> State:
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, heads, width, hidden = (12, 12, 768, 2048) if "_B_" in name else (24, 16, 1024, 2816)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=hidden, vocab_size=16384))
    return llamagen_state(model.state_dict(), torch.empty(1001, width), heads)
