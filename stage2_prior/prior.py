"""The prior: p(codes) = prod_t p(code_t | class, codes before t). Plain torch; ``hub.py`` is its transformers shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.codes import CodeSpec
from foundation.config import from_dict, to_dict
from foundation.errors import ContractError
from foundation.model_files import load_model_folder, save_model_folder
from foundation.optim import no_decay
from foundation.tensor_files import load_weights
from stage2_prior.block import Block, KVCache, RMSNorm
from stage2_prior.config import PriorConfig
from stage2_prior.rope2d import grid_angles, rotation

MODEL_TYPE = "tessera_prior"


class PriorModel(nn.Module):
    """A decoder-only transformer over [class, code 0, code 1, ...]; output t is the distribution of code t.

    Args:
        config: the size.
        spec: what the codes are; the prior is bound to it.
    """

    def __init__(self, config: PriorConfig, spec: CodeSpec) -> None:
        super().__init__()
        if len(spec.levels) > 1 or spec.levels[0].depth > 1:
            raise ContractError(
                "this prior models one grid of one code per position",
                found=[level.shape for level in spec.levels],
                fix="train a tokenizer with one level and depth 1",
            )
        self.config, self.spec = config, spec
        self.vocab_size, self.n_codes = spec.codebook_size, spec.n_codes
        self.n_classes = len(spec.class_names) if config.class_conditional else 0
        self.class_embedding = nn.Embedding(self.n_classes + 1, config.d_model)  # the last row is the null class
        self.code_embedding = nn.Embedding(self.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, self.vocab_size, bias=False)
        self._initialize()

    @property
    def null_class(self) -> int:
        """The label that means "no class"; every label of an unconditional prior."""
        return self.n_classes

    def forward(self, tokens_BT: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Teacher-forced logits.

        Args:
            tokens_BT: all T codes of each image, int64; the last is never an input.
            labels_B: classes, ``null_class`` for none, int64.

        Returns:
            (B, T, V): entry t is the distribution of code t given the class and codes 0..t-1.
        """
        x = self.dropout(self._embed(labels_B, tokens_BT[:, :-1]))
        rope = self._rope(0, tokens_BT.shape[1])
        for block in self.blocks:
            x = block(x, rope)
        return self.head(self.norm(x))

    @torch.no_grad()
    def prefill(self, labels_B: torch.Tensor, tokens_BP: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Put the class and P known codes (P may be 0) into an empty cache; returns code P's logits, (B, V)."""
        return self._extend(self._embed(labels_B, tokens_BP), cache)

    @torch.no_grad()
    def decode_one(self, tokens_B: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Append one code per row to the cache; returns the next code's logits, (B, V)."""
        return self._extend(self.code_embedding(tokens_B).unsqueeze(1), cache)

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for whole grids."""
        weight = self.head.weight
        return KVCache.empty(
            n_layers=self.config.n_layers, batch=batch, n_heads=self.config.n_heads, length=self.n_codes,
            d_head=self.config.d_head, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        """Fill an empty folder that ``load`` and ``Prior.from_pretrained`` open."""
        settings = {"prior": to_dict(self.config), "code_spec": to_dict(self.spec)}
        save_model_folder(folder, self, MODEL_TYPE, "Prior", settings)

    @classmethod
    def load(cls, folder: str | Path) -> PriorModel:
        """Open a folder that ``save`` filled; the model is in evaluation mode.

        Raises:
            CheckpointError: the folder is missing, damaged or not a prior.
        """
        settings, tensors = load_model_folder(Path(folder), MODEL_TYPE, ("prior", "code_spec"))
        model = cls.from_settings(settings)
        load_weights(model, tensors, str(folder))
        return model.eval()

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> PriorModel:
        """Build from the ``prior`` and ``code_spec`` entries of a ``config.json``; weights are random."""
        spec = from_dict(CodeSpec, settings["code_spec"], "code_spec")
        return cls(from_dict(PriorConfig, settings["prior"], "prior"), spec)

    def _embed(self, labels_B: torch.Tensor, tokens_BP: torch.Tensor) -> torch.Tensor:
        """[class, codes] => (B, 1 + P, E)."""
        return torch.cat([self.class_embedding(labels_B).unsqueeze(1), self.code_embedding(tokens_BP)], dim=1)

    def _extend(self, x_BTE: torch.Tensor, cache: KVCache) -> torch.Tensor:
        rope = self._rope(cache.filled, cache.filled + x_BTE.shape[1])
        for layer, block in enumerate(self._blocks()):
            x_BTE = block.extend(x_BTE, rope, cache, layer)
        cache.filled += x_BTE.shape[1]
        return self.head(self.norm(x_BTE[:, -1]))

    def _rope(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of sequence positions start..end-1: position 0 is the class, position p is code p - 1."""
        codes = torch.arange(start, end, device=self.head.weight.device) - 1
        width = self.spec.levels[0].width
        rows, columns = (codes // width).clamp_min(0), (codes % width) * (codes >= 0)
        return rotation(grid_angles(rows, columns, self.config.d_head, self.config.rope_base))

    def _initialize(self) -> None:
        """Normal(0, 0.02), residual outputs scaled by depth (Radford et al. 2019, GPT-2, section 2.3), head zero."""
        for block in self._blocks():
            block.initialize(0.02, self.config.n_layers)
        for embedding in (self.class_embedding, self.code_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
            no_decay(embedding.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)  # training starts at a loss of exactly ln(V)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]
