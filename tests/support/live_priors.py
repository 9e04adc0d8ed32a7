"""Cases of LlamaGen's and taming's priors, computed by transformers' Llama and GPT-2, as in ``live_models``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.live_models import MARGIN, Networks, State, codebook_of, images, randomize, taming_name, write_case
from torch import nn

Logits = Callable[[torch.Tensor], torch.Tensor]
"""codes drawn so far, (B, t) => logits of code t, (B, V)"""


class Callback:
    """A class that a training framework would name in a checkpoint."""


class GridRotation(nn.Module):
    """Rotations of a grid for transformers' Llama: rows, then columns; none at all for the class (cosine 0, sine 0)."""

    def __init__(self, side: int, head_dim: int) -> None:
        super().__init__()
        frequencies = 10_000 ** (-torch.arange(0, head_dim // 2, 2) / (head_dim // 2))
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
        angles = (places[:, :, None] * frequencies).flatten(1)
        self.tables = [torch.cat([torch.zeros(1, head_dim), torch.cat([each, each], 1)]) for each in _waves(angles)]

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        return tuple(table[: x.shape[1]][None].expand(len(x), -1, -1) for table in self.tables)


def _waves(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return angles.cos(), angles.sin()


def greedy(logits: Logits, length: int, batch: int, known: torch.Tensor | None = None) -> torch.Tensor:
    """The likeliest code after the likeliest codes, (B, length); ``known`` ones first."""
    codes = torch.zeros(batch, 0, dtype=torch.long) if known is None else known
    while codes.shape[1] < length:
        likeliest = logits(codes).topk(2, dim=1)
        assert float((likeliest.values[:, 0] - likeliest.values[:, 1]).min()) >= MARGIN
        codes = torch.cat([codes, likeliest.indices[:, :1]], 1)
    return codes


def llamagen_gpt(root: Path) -> None:
    """LlamaGen's class-conditional GPTs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, side, vocab_size, n_classes, batch in (("grid4", 4, 64, 10, 3), ("grid6", 6, 96, 7, 2)):
        sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
        config = LlamaConfig(**sizes, vocab_size=vocab_size, rms_norm_eps=1e-5, attn_implementation="eager")
        model = LlamaForCausalLM(config).eval()
        classes = nn.Embedding(n_classes + 1, 64)
        for i, module in enumerate((model, classes)):
            randomize(module, side + i, gain=2.0)
        with torch.no_grad():
            classes.weight.mul_(8)
            model.model.embed_tokens.weight.mul_(8)
        model.model.rotary_emb = GridRotation(side, 16)

        @torch.no_grad()
        def logits(codes: torch.Tensor, labels: torch.Tensor, model: Any = model, classes: Any = classes):
            inputs = torch.cat([classes(labels)[:, None], model.model.embed_tokens(codes)], 1)
            return model(inputs_embeds=inputs, use_cache=False).logits

        generator = torch.Generator().manual_seed(side)
        codes = torch.randint(vocab_size, (batch, side**2), generator=generator)
        labels = torch.randperm(n_classes, generator=generator)[:batch]
        null = torch.full_like(labels, n_classes)
        io = {"class_labels": labels, "codes": codes, "logits": logits(codes[:, :-1], labels)}
        io |= {"logits_null": logits(codes[:, :-1], null), **_filtered(generator, batch)}
        for scale, interval in ((1.0, -1), (2.0, -1), (2.0, 5)):

            def guided(
                codes: torch.Tensor,
                scale: float = scale,
                interval: int = interval,
                labels: Any = labels,
                null: Any = null,
            ):
                conditional, free = logits(codes, labels)[:, -1], logits(codes, null)[:, -1]
                active = interval < 0 or codes.shape[1] <= interval + 1
                return free + scale * (conditional - free) if active and scale > 1 else conditional

            ending = f"_interval{interval}" if interval >= 0 else ""
            io[f"greedy_cfg{scale:.1f}".replace(".", "p") + ending] = greedy(guided, side**2, batch)
        arguments = {"dim": 64, "n_layer": 3, "n_head": 4, "vocab_size": vocab_size, "num_classes": n_classes}
        arguments |= {"block_size": side**2, "cls_token_num": 1, "class_dropout_prob": 0.1, "multiple_of": 256}
        arguments |= {"norm_eps": 1e-5, "rope_base": 10000, "model_type": "c2i"}
        state = llamagen_state(model.state_dict(), classes.weight, 4)
        write_case(root / "llamagen_gpt" / name, arguments, state, io)
        torch.save({"model": state, "args": argparse.Namespace(lr=1)}, root / "llamagen_gpt" / name / "checkpoint.pt")


def _filtered(generator: torch.Generator, batch: int) -> State:
    """Probabilities after temperature, top-k and top-p, by transformers."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 2 * torch.randn(batch, 64, generator=generator)
    found: State = {"filter_logits": logits}
    for temperature, k, p in ((0.7, 5, 1.0), (1.0, 0, 0.8), (1.3, 20, 0.9)):
        steps = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
        steps += [TopKLogitsWarper(k)] if k else []
        steps += [TopPLogitsWarper(p)] if p < 1 else []
        left = logits
        for step in steps:
            left = step(None, left)
        found[f"filter_probs_t{temperature}_k{k}_p{p}"] = left.softmax(1)
    return found


def llamagen_state(theirs: State, classes: torch.Tensor, n_heads: int) -> State:
    """Weights of transformers' Llama under LlamaGen's names; there, the two channels of a rotation are neighbours."""

    def neighbours(weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    state = {
        "cls_embedding.embedding_table.weight": classes,
        "tok_embeddings.weight": theirs["model.embed_tokens.weight"],
    }
    n_layers = sum(key.endswith("input_layernorm.weight") for key in theirs)
    for i in range(n_layers):
        layer, own = f"model.layers.{i}.", f"layers.{i}."
        q, k, v = (theirs[f"{layer}self_attn.{each}_proj.weight"] for each in "qkv")
        state[f"{own}attention.wqkv.weight"] = torch.cat([neighbours(q), neighbours(k), v])
        for ours, name in {
            "attention.wo": "self_attn.o_proj",
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "feed_forward.w1": "mlp.gate_proj",
            "feed_forward.w3": "mlp.up_proj",
            "feed_forward.w2": "mlp.down_proj",
        }.items():
            state[f"{own}{ours}.weight"] = theirs[f"{layer}{name}.weight"]
    return {**state, "norm.weight": theirs["model.norm.weight"], "output.weight": theirs["lm_head.weight"]}


def net2net(root: Path) -> None:
    """taming's class-conditional and unconditional transformers, with their tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    for name, vocab_size, length, steps, batch in (
        ("net2net_class", 48, 17, 16, 3),
        ("net2net_uncond", 32, 16, 15, 1),
    ):
        sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": length, "vocab_size": vocab_size}
        options = {"activation_function": "gelu", "tie_word_embeddings": False, "attn_implementation": "eager"}
        options |= {"bos_token_id": None, "eos_token_id": None}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **options)).eval()
        randomize(model, length, gain=1.4)
        with torch.no_grad():
            for embedding in (model.transformer.wte, model.transformer.wpe):
                embedding.weight.mul_(8)
        generator = torch.Generator().manual_seed(length)
        codes = torch.randint(32, (batch, steps), generator=generator)
        labels = torch.tensor([0, 3, 10]) if batch == 3 else torch.zeros(1, dtype=torch.long)

        @torch.no_grad()
        def logits(codes: torch.Tensor, labels: torch.Tensor = labels, model: Any = model) -> torch.Tensor:
            return model(torch.cat([labels[:, None], codes], 1), use_cache=False).logits

        def last(codes: torch.Tensor, logits: Logits = logits) -> torch.Tensor:
            return logits(codes)[:, -1]

        io = {"codes": codes, "condition": labels[:, None], "logits": logits(codes[:, :-1])}
        io |= {"greedy": greedy(last, steps, batch)}
        io["greedy_continued"] = greedy(last, steps, batch, codes[:, : steps // 2])
        networks = Networks([1, 1], 8, 16, blocks=1, attention=False, seed=length)
        codebook = codebook_of(networks.latents(images([8, 8], length)), 32, length)
        first = {**networks.state(taming_name), "quantize.embedding.weight": codebook}
        state = _taming_state(model.state_dict(), length)
        state |= {f"first_stage_model.{key}": value for key, value in first.items()}
        ddconfig = {"double_z": False, "z_channels": 8, "resolution": 8, "in_channels": 3, "out_ch": 3, "ch": 32}
        ddconfig |= {"ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
        transformer = {"vocab_size": vocab_size, "block_size": length, "n_layer": 3, "n_head": 4, "n_embd": 64}
        config = {"n_embed": 32, "embed_dim": 16, "ddconfig": ddconfig, "transformer": {**transformer, "n_unmasked": 0}}
        config |= {"cond": "class", "n_classes": 11} if batch == 3 else {"cond": "sos", "sos_token": 0}
        if batch == 3:
            io["class_labels"] = labels
        write_case(root / "taming" / name, config, state, io)
        wrapped = {"state_dict": state, "callbacks": {Callback: {"best": 1}}}
        torch.save(wrapped, root / "taming" / name / "checkpoint.ckpt")


def _taming_state(theirs: State, length: int) -> State:
    """Weights of transformers' GPT-2 under taming's names; GPT-2 keeps its matrices transposed."""
    state = {"tok_emb.weight": theirs["transformer.wte.weight"], "pos_emb": theirs["transformer.wpe.weight"][None]}
    for i in range(3):
        layer, own = f"transformer.h.{i}.", f"blocks.{i}."
        state[f"{own}attn.mask"] = torch.ones(length, length).tril()[None, None]
        for last in ("weight", "bias"):
            parts = theirs[f"{layer}attn.c_attn.{last}"].chunk(3, -1)
            for ours, part in zip(("query", "key", "value"), parts, strict=True):
                state[f"{own}attn.{ours}.{last}"] = part.t() if last == "weight" else part
            for ours, name in {"attn.proj": "attn.c_proj", "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}.items():
                value = theirs[f"{layer}{name}.{last}"]
                state[f"{own}{ours}.{last}"] = value.t() if last == "weight" else value
            for norm in ("1", "2"):
                state[f"{own}ln{norm}.{last}"] = theirs[f"{layer}ln_{norm}.{last}"]
            state[f"ln_f.{last}"] = theirs[f"transformer.ln_f.{last}"]
    state["head.weight"] = theirs["lm_head.weight"]
    return {f"transformer.{key}": value.contiguous() for key, value in state.items()}
