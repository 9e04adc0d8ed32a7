"""The prior: p(codes) = prod_t p(code_t | class, codes before t). Plain torch; ``hub.py`` is its transformers shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.codes import CodeSpec
from foundation.config import from_dict, to_dict
from foundation.errors import DataError
from foundation.model_files import load_model_folder, save_model_folder
from foundation.optim import no_decay
from foundation.tensor_files import load_weights
from stage2_prior.block import Block, KVCache, RMSNorm
from stage2_prior.config import PriorConfig
from stage2_prior.places import Places, PlaceTables

MODEL_TYPE = "tessera_prior"


class PriorModel(nn.Module):
    """A decoder-only transformer over [class, code 0, code 1, ...]; output t is the distribution of code t.

    Codes of all levels and depths form one sequence, in the order of ``CodeSpec``. Each slot (a depth of a level) has
    its own rows of the embedding; where there are several, an input also learns which slot it is to predict.

    Args:
        config: the size.
        spec: what the codes are; the prior is bound to it.
    """

    def __init__(self, config: PriorConfig, spec: CodeSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.vocab_size, self.n_codes = spec.codebook_size, spec.n_codes
        self.n_classes = len(spec.class_names) if config.class_conditional else 0
        self.place_tables = PlaceTables(spec, config.d_head, config.rope_base)
        self.class_embedding = nn.Embedding(self.n_classes + 1, config.d_model)  # the last row is the null class
        self.code_embedding = nn.Embedding(self.place_tables.n_rows, config.d_model)
        self.slot_embedding = nn.Embedding(len(spec.slots), config.d_model) if len(spec.slots) > 1 else None
        self._unequal = len({slot.codebook_size for slot in spec.slots}) > 1
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
            (B, T, V): entry t is the distribution of code t given the class and codes 0..t-1; -inf beyond the codebook
            of position t, where it has fewer than V codes.

        Raises:
            DataError: more than T codes.
        """
        length = tokens_BT.shape[1]
        self._require_room(length)
        places = self.place_tables.on(self.head.weight.device).part(0, length)
        x = self.dropout(self._embed(labels_B, tokens_BT[:, :-1], places))
        for block in self.blocks:
            x = block(x, places.rope)
        return self._predict(x, places)

    @torch.no_grad()
    def prefill(self, labels_B: torch.Tensor, tokens_BP: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Put the class and P known codes (P may be 0) into an empty cache; returns code P's logits, (B, V)."""
        self._require_room(tokens_BP.shape[1] + 1)
        places = self._places(cache, tokens_BP.shape[1] + 1)
        return self._extend(self._embed(labels_B, tokens_BP, places), places, cache)

    @torch.no_grad()
    def decode_one(self, tokens_B: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Append one code per row to the cache; returns the next code's logits, (B, V)."""
        self._require_room(cache.filled + 1)
        places = self._places(cache, 1)
        return self._extend(self._embed_codes(tokens_B.unsqueeze(1), places), places, cache)

    def possible(self, logits_BV: torch.Tensor, position: int) -> torch.Tensor:
        """The finite part of the logits of a position: those of its own codebook, (B, V) or narrower (a view)."""
        return logits_BV[:, : int(self.place_tables.size_T[position])]

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for whole grids."""
        weight = self.head.weight
        return KVCache.empty(
            n_layers=self.config.n_layers, batch=batch, n_heads=self.config.n_heads, length=self.n_codes,
            d_head=self.config.d_head, device=weight.device, dtype=weight.dtype,
            places=self.place_tables.on(weight.device),
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

    def _embed(self, labels_B: torch.Tensor, tokens_BP: torch.Tensor, places: Places) -> torch.Tensor:
        """[class, codes] => (B, 1 + P, E); ``places`` are those of all 1 + P inputs."""
        class_B1E = self.class_embedding(labels_B).unsqueeze(1)
        if self.slot_embedding is not None:
            class_B1E = class_B1E + self.slot_embedding(places.slot_T[:1])
        return torch.cat([class_B1E, self._embed_codes(tokens_BP, places.part(1, None))], dim=1)

    def _embed_codes(self, tokens_BP: torch.Tensor, places: Places) -> torch.Tensor:
        """(B, P) codes at these places => (B, P, E)."""
        if self.slot_embedding is None:
            return self.code_embedding(tokens_BP)
        return self.code_embedding(tokens_BP + places.offset_T) + self.slot_embedding(places.slot_T)

    def _extend(self, x_BTE: torch.Tensor, places: Places, cache: KVCache) -> torch.Tensor:
        for layer, block in enumerate(self._blocks()):
            x_BTE = block.extend(x_BTE, places.rope, cache, layer)
        cache.filled += x_BTE.shape[1]
        return self._predict(x_BTE[:, -1:], places.part(-1, None)).squeeze(1)

    def _predict(self, x_BTE: torch.Tensor, places: Places) -> torch.Tensor:
        logits_BTV = self.head(self.norm(x_BTE))
        if self._unequal:
            beyond_TV = torch.arange(self.vocab_size, device=x_BTE.device) >= places.size_T.unsqueeze(1)
            logits_BTV = logits_BTV.masked_fill(beyond_TV, -torch.inf)
        return logits_BTV

    def _places(self, cache: KVCache, n: int) -> Places:
        """Places of the next n inputs of a cache."""
        assert cache.places is not None, "made by new_cache"
        return cache.places.part(cache.filled, cache.filled + n)

    def _require_room(self, length: int) -> None:
        if length > self.n_codes:
            raise DataError("more codes than an image has", field="tokens", found=length,
                            expected=f"up to {self.n_codes}")  # fmt: skip

    def _initialize(self) -> None:
        """Normal(0, 0.02), residual outputs scaled by depth (Radford et al. 2019, GPT-2, section 2.3), head zero."""
        for block in self._blocks():
            block.initialize(0.02, self.config.n_layers)
        for embedding in (self.class_embedding, self.code_embedding, self.slot_embedding):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02)
                no_decay(embedding.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)  # training starts at a loss of exactly ln(V)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]
