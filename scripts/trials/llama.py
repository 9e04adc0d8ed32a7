"""A prior as people build one from a library: transformers' LlamaForCausalLM on the codes, with AdamW.

A class is a token before the codes, from the rows of the vocabulary beyond the codebook; the last row is no class,
which guidance compares with. Training, guidance and sampling are otherwise as of our own prior's recipe.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from foundation.codes.dataset import TokenDataset
from foundation.training.optim import adamw, learning_rate
from stage2_prior.config import PriorConfig, PriorTraining

_TIMED = 8
"""steps by which the length is chosen"""


@dataclass(frozen=True)
class Trained:
    """A Llama, and what it took.

    Attributes:
        model: in evaluation mode.
        n_codes: V, rows of the vocabulary that are codes.
        n_classes: rows after them; one more is no class.
        steps: optimizer steps.
        seconds: of training.
    """

    model: LlamaForCausalLM
    n_codes: int
    n_classes: int
    steps: int
    seconds: float

    def sequences(self, codes_BT: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """The class's token, then the codes."""
        return torch.cat([(self.n_codes + labels_B)[:, None], codes_BT], 1)


def build(config: PriorConfig, n_codes: int, n_classes: int, n_positions: int) -> LlamaForCausalLM:
    """A Llama with the depth, width, heads and feed-forward width of one of our priors."""
    n_layers, n_heads, width = config.shape
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=n_codes + n_classes + 1,
            hidden_size=width,
            intermediate_size=config.feed_forward_width,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            max_position_embeddings=n_positions,
            tie_word_embeddings=False,
            attention_dropout=0.0,
        )
    )


def train_llama(
    codes: TokenDataset, config: PriorConfig, training: PriorTraining, seconds: float, seed: int
) -> Trained:
    """Train for a fixed time; the number of steps is chosen by the first ones, after a warm-up.

    Args:
        codes: of training, with labels.
        config: whose shape the model gets.
        training: batch size, optimizer, label dropout.
        seconds: for all.
        seed: of weights and batches.
    """
    torch.manual_seed(seed)
    rng, n_classes = np.random.default_rng(seed), len(codes.spec.class_names)
    model = build(config, codes.spec.codebook_size, n_classes, codes.spec.n_codes + 1).train()
    trained = Trained(model, codes.spec.codebook_size, n_classes, 0, 0.0)
    optimizer, size = adamw(model, training.optim), training.fit.batch_size
    began, steps, step = time.perf_counter(), 1 << 30, 0
    order = np.empty(0, np.int64)
    while step < steps:
        if step == 2:
            timed = time.perf_counter()
        if step == 2 + _TIMED:
            now = time.perf_counter()
            steps = step + int((seconds - (now - began)) / ((now - timed) / _TIMED))
        if len(order) < size:  # an epoch ends; what is left of it is less than a batch
            order = rng.permutation(len(codes))
        rows, order = np.sort(order[:size]), order[size:]
        rate = learning_rate(training.optim, step, steps if steps < 1 << 30 else 10_000)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss_of(trained, codes, rows, rng.random(size) < training.label_dropout).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.optim.clip_norm or torch.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    return Trained(model.eval(), trained.n_codes, n_classes, step, time.perf_counter() - began)


def loss_of(trained: Trained, codes: TokenDataset, rows: np.ndarray, dropped_B: np.ndarray) -> torch.Tensor:
    """Nats of each code of these rows, (B, T)."""
    assert codes.labels_N is not None
    tokens = torch.from_numpy(codes.codes_NT[rows].astype(np.int64))
    labels = torch.from_numpy(np.where(dropped_B, trained.n_classes, codes.labels_N[rows]))
    inputs = trained.sequences(tokens, labels)
    logits = trained.model(inputs[:, :-1], use_cache=False).logits[..., : trained.n_codes]
    return F.cross_entropy(logits.transpose(1, 2).float(), tokens, reduction="none")


@torch.no_grad()
def held_out_bits(trained: Trained, codes: TokenDataset, batch_size: int = 250) -> float:
    """Mean bits of an image's codes."""
    total = 0.0
    for start in range(0, len(codes), batch_size):
        rows = np.arange(start, min(start + batch_size, len(codes)))
        total += float(loss_of(trained, codes, rows, np.zeros(len(rows), bool)).sum())
    return total / len(codes) / float(np.log(2))


@torch.no_grad()
def sample(trained: Trained, labels: np.ndarray, n_positions: int, guidance: float, seed: int) -> torch.Tensor:
    """Codes of an image of each label, (B, T), with classifier-free guidance on the logits and the library's cache."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, len(labels), 250):
        own = torch.from_numpy(labels[start : start + 250])
        both = torch.cat([own, torch.full_like(own, trained.n_classes)]) if guidance != 1 else own
        tokens, cache, drawn = (trained.n_codes + both)[:, None], None, []
        for _ in range(n_positions):
            out: Any = trained.model(tokens, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[:, -1, : trained.n_codes].float()
            if guidance != 1:
                conditional, free = logits.chunk(2)
                logits = free + guidance * (conditional - free)
            codes = torch.multinomial(logits.softmax(1), 1, generator=generator)
            drawn.append(codes)
            tokens = torch.cat([codes, codes]) if guidance != 1 else codes
        found.append(torch.cat(drawn, 1))
    return torch.cat(found)
