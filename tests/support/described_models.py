"""Random weights under the names and shapes of systems that no installed package computes: dVAE and Open-MAGVIT2.

For what an importer recognises, reads and refuses. They hold no outputs, except the codes of the dVAE, whose encoder
transformers' FLAVA has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from support.live_models import MARGIN, State, images, randomize, write_case
from torch import nn

_N_HID, _N_INIT, _VOCAB = 16, 8, 64
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def random_state(shapes: Shapes, seed: int) -> State:
    """Random values for names and shapes."""
    module = module_of({name: torch.empty(shape) for name, shape in shapes})
    randomize(module, seed)
    return module.state_dict()


def module_of(state: State) -> nn.Module:
    """A module whose parameters have these names."""
    root = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        inner = root
        for part in path:
            if part not in dict(inner.named_children()):
                inner.add_module(part, nn.Module())
            inner = inner.get_submodule(part)
        inner.register_parameter(last, nn.Parameter(value, requires_grad=False))
    return root


def dvae_shapes(part: str) -> Shapes:
    """Names and shapes of the dVAE's encoder or decoder."""
    encodes = part == "encoder"
    first, last = (3, _VOCAB) if encodes else (_VOCAB, 6)
    n_in, kernels = (_N_HID, (3, 3, 3, 1)) if encodes else (_N_INIT, (1, 3, 3, 3))
    yield from _convolution("blocks.input", n_in, first, 7 if encodes else 1)
    for group, times in enumerate((1, 2, 4, 8) if encodes else (8, 4, 2, 1), start=1):
        n_out = times * _N_HID
        for block in (1, 2):
            name, n_inner = f"blocks.group_{group}.block_{block}", n_out // 4
            if n_in != n_out:
                yield from _convolution(f"{name}.id_path", n_out, n_in, 1)
            widths = (n_in, n_inner, n_inner, n_inner, n_out)
            for i, kernel in enumerate(kernels):
                yield from _convolution(f"{name}.res_path.conv_{i + 1}", widths[i + 1], widths[i], kernel)
            n_in = n_out
    yield from _convolution("blocks.output.conv", last, n_in, 1)


def _convolution(name: str, n_out: int, n_in: int, kernel: int) -> Shapes:
    yield f"{name}.w", (n_out, n_in, kernel, kernel)
    yield f"{name}.b", (n_out,)


def openai_dvae(root: Path) -> None:
    """DALL-E's dVAE, whole and as its two published files; codes by FLAVA's codebook."""
    folder = root / "openai_dvae" / "dvae_tiny"
    parts = {part: random_state(dvae_shapes(part), seed) for seed, part in enumerate(("encoder", "decoder"))}
    for name, value in parts["encoder"].items():
        if name.endswith("res_path.conv_4.w"):
            value.mul_(16)  # a block adds a small share of it
    state = {f"{part}.{key}": value for part, each in parts.items() for key, value in each.items()}
    config = {"n_hid": _N_HID, "n_init": _N_INIT, "n_blk_per_group": 2, "vocab_size": _VOCAB}
    write_case(folder, config, state, flava_codes(parts["encoder"]))
    for part, each in parts.items():
        torch.save(module_of(each), folder / f"{part}.pkl")


def flava_codes(encoder: State) -> State:
    """Codes and logits of an image by transformers' FLAVA, which begins with the dVAE's encoder."""
    from transformers.models.flava.configuration_flava import FlavaImageCodebookConfig
    from transformers.models.flava.modeling_flava import FlavaImageCodebook

    sizes: dict[str, Any] = {"num_groups": 4, "num_blocks_per_group": 2, "hidden_size": _N_HID, "vocab_size": _VOCAB}
    model = FlavaImageCodebook(FlavaImageCodebookConfig(**sizes)).eval()
    endings = {"w": "weight", "b": "bias"}
    renamed = {}
    for name, value in encoder.items():
        *path, last = name.split(".")
        renamed[".".join([*(_flava_part(each) for each in path), endings[last]])] = value
    model.load_state_dict(renamed)
    for seed in range(100):
        image = images([48, 64], seed).clamp(-1, 1)
        with torch.no_grad():
            logits = model.blocks(0.8 * (image + 1) / 2 + 0.1)
        two = logits.topk(2, dim=1).values
        if float((two[:, 0] - two[:, 1]).min()) >= MARGIN:
            return {"image": image, "codes": logits.argmax(1), "code_logits": logits}
    raise AssertionError("no image has clear margins")


def _flava_part(name: str) -> str:
    if name == "res_path":
        return "res_path.path"
    return f"{name}.group" if name.startswith("group_") else name


def magvit2_shapes(ch_mult: tuple[int, ...], z_channels: int) -> Shapes:
    """Names and shapes of Open-MAGVIT2's tokenizer with one residual block a level."""
    ch, top = 32, 32 * ch_mult[-1]
    yield "encoder.conv_in.weight", (ch, 3, 3, 3)
    n_in = ch
    for i, times in enumerate(ch_mult):
        yield from _residual_block(f"encoder.down.{i}.block.0", n_in, ch * times)
        n_in = ch * times
        if i < len(ch_mult) - 1:
            yield from _layer(f"encoder.down.{i}.downsample", n_in, n_in, 3)
    yield from _residual_block("encoder.mid_block.0", top, top)
    yield from _norm("encoder.norm_out", top)
    yield from _layer("encoder.conv_out", z_channels, top, 1)
    yield from _layer("decoder.conv_in", top, z_channels, 3)
    yield from _residual_block("decoder.mid_block.0", top, top)
    n_in = top
    for i, times in reversed([*enumerate(ch_mult)]):
        for map_name in ("gamma", "beta"):
            yield f"decoder.adaptive.{i}.{map_name}.weight", (n_in, z_channels)
            yield f"decoder.adaptive.{i}.{map_name}.bias", (n_in,)
        yield from _residual_block(f"decoder.up.{i}.block.0", n_in, ch * times)
        n_in = ch * times
        if i > 0:
            yield from _layer(f"decoder.up.{i}.upsample.conv1", 4 * n_in, n_in, 3)
    yield from _norm("decoder.norm_out", n_in)
    yield from _layer("decoder.conv_out", 3, n_in, 3)


def _residual_block(name: str, n_in: int, n_out: int) -> Shapes:
    for i, width in ((1, n_in), (2, n_out)):
        yield from _norm(f"{name}.norm{i}", width)
        yield f"{name}.conv{i}.weight", (n_out, width, 3, 3)
    if n_in != n_out:
        yield f"{name}.nin_shortcut.weight", (n_out, n_in, 1, 1)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _layer(name: str, n_out: int, n_in: int, kernel: int) -> Shapes:
    yield f"{name}.weight", (n_out, n_in, kernel, kernel)
    yield f"{name}.bias", (n_out,)


def open_magvit2(root: Path) -> None:
    """Open-MAGVIT2's tokenizers, without and with averaged weights."""
    for name, ch_mult in (("lfq_f16_tiny", (1, 1, 1, 2, 2)), ("lfq_f8_ema_tiny", (1, 1, 1, 2))):
        state = random_state(magvit2_shapes(ch_mult, 10), len(ch_mult))
        ddconfig = {"double_z": False, "z_channels": 10, "resolution": 128, "in_channels": 3, "out_ch": 3, "ch": 32}
        config: dict[str, Any] = {"ddconfig": {**ddconfig, "ch_mult": ch_mult, "num_res_blocks": 1}}
        config |= {"n_embed": 1024, "embed_dim": 10, "use_ema": "ema" in name}
        if "ema" in name:
            averages = {f"model_ema.{key.replace('.', '')}": 0.9 * value for key, value in state.items()}
            counters = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(3)}
            state = {**state, **averages, **counters}
        write_case(root / "open_magvit2" / name, config, state, {})
