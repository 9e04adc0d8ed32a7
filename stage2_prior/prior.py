"""The prior as a plain torch module: p(codes) = prod_t p(code_t | class, codes before t)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from foundation.arguments import as_codes, as_path, require_type
from foundation.codes.spec import CodeSpec
from foundation.config import from_dict, require, to_dict
from foundation.errors import DataError
from foundation.storage.serialization import load_model_folder, load_weights, save_model_folder
from foundation.training.optim import no_decay
from stage2_prior.block import Block, Dropout, stream_norm
from stage2_prior.config import PriorConfig
from stage2_prior.head_loss import nll_per_code
from stage2_prior.positions import Positions, PositionTables

MODEL_TYPE = "tessera_prior"


class PriorModel(nn.Module):
    """A decoder-only transformer over [class, code 0, code 1, ...]; output t is the distribution of code t.

    Codes of all levels and depths form one sequence, in the order of ``CodeSpec``. Each slot (a depth of a level) has
    its own rows of the embedding; with several slots, an input also learns which one it predicts. Where images have
    several shapes, an image's codes rotate by the rows and columns of their own grid, and an embedding of the grid,
    zero at first, is added to the class: the prior knows the grid before the first code.

    Args:
        config: size and options.
        spec: of the codes; the prior serves no other.

    Attributes:
        gradient_checkpointing: keep only the inputs of the blocks in training and recompute the rest in the backward
            pass: less memory, about a third more time. The name is the one that transformers looks for.
    """

    def __init__(self, config: PriorConfig, spec: CodeSpec) -> None:
        super().__init__()
        require_type("config", config, PriorConfig)
        require_type("spec", spec, CodeSpec)
        self.config, self.spec = config, spec
        self.gradient_checkpointing, self.decodes_compiled = False, False
        self.adapter: Any = None  # peft's settings, see lora.py
        self._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        self.vocab_size, self.n_codes = spec.codebook_size + config.extra_codes, spec.n_codes
        self.n_classes = len(spec.class_names) if config.class_conditional else 0
        single = config.extra_codes == 0 or len(spec.slots) == 1
        require(single, "extra_codes", config.extra_codes, "0 where there are several levels or depths")
        n_layers, _, d_model = config.shape
        learned, n_grids = config.positions == "learned", spec.n_grids
        self.n_grids = n_grids
        self.position_tables = PositionTables(spec, config)
        self.class_embedding = nn.Embedding(self.n_classes + 1, d_model)  # the last row is the null class
        self.code_embedding = nn.Embedding(self.position_tables.n_rows, d_model)
        self.slot_embedding = nn.Embedding(len(spec.slots), d_model) if len(spec.slots) > 1 else None
        n_places = n_grids * spec.n_codes
        self.place_embedding = nn.Embedding(1 + n_places, d_model) if learned else None  # row 0 is the class's
        self.target_embedding = nn.Embedding(n_places, d_model) if config.target_aware else None
        self.grid_embedding = nn.Embedding(n_grids, d_model) if n_grids > 1 else None
        self._unequal = len({slot.codebook_size for slot in spec.slots}) > 1
        self.dropout = Dropout(config.dropouts.token)
        self.blocks = nn.ModuleList(Block(config) for _ in range(n_layers))
        self.norm = stream_norm(config)
        self.head = nn.Linear(d_model, self.vocab_size, bias=False)
        self._initialize()

    @property
    def null_class(self) -> int:
        """The label that means "no class"; every label of an unconditional prior."""
        return self.n_classes

    def forward(self, tokens_BT: Any, labels_B: Any = None, orders_BT: Any = None, grids_B: Any = None) -> torch.Tensor:
        """Teacher-forced logits.

        Args:
            tokens_BT: the T codes of each image, or its first ones, of any integer type, or the tokenizer's grids of
                them; the last code is never an input.
            labels_B: classes, ``null_class`` for none; None is no class for all.
            orders_BT: a permutation of the T positions for each image; None for raster order. The codes themselves
                stay in raster order.
            grids_B: the grid of each image, an index into ``spec.grids``, or one for all; None takes the grid that the
                codes have the shape of, else the first.

        Returns:
            (B, T, V): entry t is the distribution of code t given the class and codes 0..t-1; -inf beyond the codebook
            of position t, where it has fewer than V codes. V is the size of the largest, and ``extra_codes``. With
            orders, entry i is the distribution of code ``orders_BT[b, i]`` given the class and codes
            ``orders_BT[b, :i]``.

        Raises:
            DataError: other shapes, more than T codes, orders that are no permutations, or (checked on a CPU only,
                elsewhere it would wait for the device) codes and classes that do not exist.
            ConfigError: orders given to a prior that is not ``target_aware``.
        """
        given = tokens_BT
        tokens_BT, labels_B = self.checked(given, labels_B)
        grids_B = self.checked_grids(given, grids_B)
        orders_BT = None if orders_BT is None else as_codes(orders_BT, "orders_BT", tokens_BT.device)
        logits_BTV, size_N = self.head(self.hidden(tokens_BT, labels_B, orders_BT, grids_B)), self.sizes(tokens_BT)
        if size_N is None:
            return logits_BTV
        beyond_BTV = torch.arange(self.vocab_size, device=size_N.device) >= size_N.view(*tokens_BT.shape, 1)
        return logits_BTV.masked_fill(beyond_BTV, -torch.inf)

    def hidden(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        orders_BT: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm, (B, T, E); arguments as of ``hidden_states``."""
        return self.hidden_states(tokens_BT, labels_B, orders_BT, grids_B)[0]

    def hidden_states(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        orders_BT: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
        after: Collection[int] = (),
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Hidden states after the last norm, and after some blocks.

        Args:
            tokens_BT, labels_B, orders_BT, grids_B: as of ``forward``, int64, of which the length alone is checked;
                ``grids_B`` has an entry for each image if there are several grids, else it is None.
            after: numbers of blocks, from 1.

        Returns:
            (B, T, E); and the same by block for those in ``after``.
        """
        length = tokens_BT.shape[1]
        require_length(self.n_codes, length)
        tables = self.position_tables
        if self.grid_embedding is not None and grids_B is None:
            grids_B = torch.zeros_like(labels_B)
        if orders_BT is not None:
            aware = self.target_embedding is not None
            require(aware, "target_aware", aware, "true for other orders", "set prior.model.target_aware to true")
            positions = tables.ordered(orders_BT, len(tokens_BT), grids_B)
            tokens_BT = tokens_BT.gather(1, orders_BT)
        elif grids_B is None:
            positions = tables.on(self.head.weight.device).part(0, length)
        else:
            positions = tables.of_grids(grids_B).part(0, length)
        x = self.dropout(self._embed(labels_B, tokens_BT[:, :-1], positions, grids_B))
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        states = {}
        for i, block in enumerate(self.blocks, start=1):
            arguments = block, x, positions.rope
            x = self._gradient_checkpointing_func(*arguments) if recompute else block(*arguments[1:])
            if i in after:
                states[i] = x
        return self.norm(x), states

    @torch.no_grad()
    def nll(self, tokens_BT: Any, labels_B: Any = None, grids_B: Any = None) -> torch.Tensor:
        """Negative log-likelihood of each code given its class and the codes before it.

        Args:
            tokens_BT, labels_B, grids_B: as of ``forward``.

        Returns:
            (B, T) float32, nats. The logits of all B * T codes never exist at once.

        Raises:
            DataError: as ``forward``.
        """
        given = tokens_BT
        tokens_BT, labels_B = self.checked(given, labels_B)
        grids_B = self.checked_grids(given, grids_B)
        hidden_NE = self.hidden(tokens_BT, labels_B, grids_B=grids_B).flatten(0, 1)
        nll_N = nll_per_code(hidden_NE, self.head.weight, tokens_BT.flatten(), self.sizes(tokens_BT))
        return nll_N.view_as(tokens_BT)

    def checked(
        self, tokens_BT: Any, labels_B: Any = None, *, check_range: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and classes as ``hidden`` takes them: (B, T) and (B,), int64, on the model's device.

        Args:
            tokens_BT, labels_B: as of ``forward``.
            check_range: whether values are checked, which waits for a GPU; None does so on a CPU.

        Raises:
            DataError: see ``forward``.
        """
        tokens_BT = self.as_sequences(tokens_BT, "tokens_BT")
        n_images, device = len(tokens_BT), tokens_BT.device
        if labels_B is None:
            labels_B = torch.full((n_images,), self.null_class, device=device)
        labels_B = as_codes(labels_B, "labels_B", device)
        shape, expected = tuple(labels_B.shape), f"({n_images},), a class for each image"
        problem = "are not one for each image"
        DataError.unless(shape == (n_images,), problem, field="labels_B", found=shape, expected=expected)
        if device.type == "cpu" if check_range is None else check_range:
            self.require_codes(tokens_BT, "tokens_BT")
            low, high = (int(each) for each in labels_B.aminmax()) if n_images else (0, 0)
            found, expected = f"{low}..{high}", f"0..{self.null_class}, of which {self.null_class} is no class"
            inside = 0 <= low <= high <= self.null_class
            DataError.unless(inside, "no such class", field="labels_B", found=found, expected=expected)
        return tokens_BT, labels_B

    def checked_grids(self, codes: Any, grids_B: Any) -> torch.Tensor | None:
        """The grid of each image as ``hidden`` takes it: (B,) int64 on the model's device; None where there is one.

        Args:
            codes: as of ``forward``.
            grids_B: as of ``forward``.

        Raises:
            DataError: a grid that does not exist, or another number of grids than images.
        """
        device, n_images = self.head.weight.device, len(codes)
        if self.n_grids == 1 and (grids_B is None or (isinstance(grids_B, int) and grids_B == 0)):
            return None
        if grids_B is None:
            grids_B = self.spec.find_grid(getattr(codes, "shape", ())[1:]) or 0
        whole = isinstance(grids_B, int)
        grids_B = torch.full((n_images,), grids_B, device=device) if whole else as_codes(grids_B, "grids_B", device)
        shape, expected = tuple(grids_B.shape), f"({n_images},), a grid for each image"
        DataError.unless(
            shape == (n_images,), "are not one for each image", field="grids_B", found=shape, expected=expected
        )
        if device.type == "cpu" and n_images:
            low, high = (int(each) for each in grids_B.aminmax())
            inside, expected = 0 <= low <= high < self.n_grids, f"0..{self.n_grids - 1}"
            DataError.unless(inside, "no such grid", field="grids_B", found=f"{low}..{high}", expected=expected)
        return grids_B if self.n_grids > 1 else None

    def as_sequences(self, codes: Any, field: str) -> torch.Tensor:
        """Codes, also as the tokenizer's grids => (B, T) int64 on the model's device, T up to ``n_codes``.

        Raises:
            DataError: no codes, or another shape.
        """
        given = as_codes(codes, field, self.head.weight.device)
        if tuple(given.shape[1:]) == self.spec.shape or self.spec.find_grid(given.shape[1:]) is not None:
            given = given.flatten(1)
        sound, expected = given.ndim == 2 and given.shape[1] > 0, f"(B, {self.n_codes})"
        problem, found = "are no sequences of codes", tuple(given.shape)
        DataError.unless(sound, problem, field=field, found=found, expected=expected)
        require_length(self.n_codes, given.shape[1], field)
        return given

    def require_codes(self, tokens_BT: torch.Tensor, field: str) -> None:
        """Refuse codes that do not exist. Waits for the device.

        Raises:
            DataError: naming the first one.
        """
        size_T = torch.full((tokens_BT.shape[1],), self.vocab_size, device=tokens_BT.device)
        if self._unequal:
            size_T = self.position_tables.on(tokens_BT.device).size_T[: tokens_BT.shape[1]]
        wrong_BT = (tokens_BT < 0) | (tokens_BT >= size_T)
        if bool(wrong_BT.any()):
            image, t = (int(each) for each in wrong_BT.nonzero()[0])
            found, expected = int(tokens_BT[image, t]), f"0..{int(size_T[t]) - 1}"
            raise DataError("no such code", field=f"{field}[{image}, {t}]", found=found, expected=expected)

    def sizes(self, tokens_BT: torch.Tensor) -> torch.Tensor | None:
        """(B * T,) int64: for each code, the size of its position's codebook; None where all have V codes."""
        if not self._unequal:
            return None
        positions = self.position_tables.on(tokens_BT.device)
        return positions.size_T[: tokens_BT.shape[1]].expand_as(tokens_BT).flatten()

    def zero_residual_outputs(self) -> None:
        """Let every block be the identity, as training may begin."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.zero_outputs()

    def compile_blocks(self) -> None:
        """Compile each block with ``torch.compile``; the names of parameters stay as they are."""
        for block in self.blocks:
            block.compile()

    def compile_decoding(self) -> None:
        """Sample codes with a compiled step from now on: faster on a GPU, tens of seconds for the first image."""
        self.decodes_compiled = True

    def within_codebook(self) -> PriorModel:
        """This prior without its ``extra_codes``, so that every code belongs to an image."""
        if not self.config.extra_codes:
            return self
        with torch.device(self.head.weight.device):
            kept = PriorModel(dataclasses.replace(self.config, extra_codes=0), self.spec)
        rows = {"code_embedding.weight", "head.weight"}
        state = {name: x[: kept.vocab_size] if name in rows else x for name, x in self.state_dict().items()}
        kept.load_state_dict(state)
        return kept.to(self.head.weight.dtype).train(self.training)

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
        settings, tensors = load_model_folder(as_path(folder, "folder"), MODEL_TYPE, ("prior", "code_spec"))
        model = cls.from_settings(settings)
        load_weights(model, tensors, str(folder))
        return model.eval()

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> PriorModel:
        """Build from the ``prior`` and ``code_spec`` entries of a ``config.json``; weights are random."""
        spec = from_dict(CodeSpec, settings["code_spec"], "code_spec")
        return cls(PriorConfig.saved(settings["prior"], "prior"), spec)

    def _embed(
        self,
        labels_B: torch.Tensor,
        tokens_BP: torch.Tensor,
        positions: Positions,
        grids_B: torch.Tensor | None,
    ) -> torch.Tensor:
        """[class, codes] => (B, T, E), T = 1 + P inputs at these positions."""
        if self.slot_embedding is not None:
            tokens_BP = tokens_BP + positions.offset_T[1:]
        class_BE = self.class_embedding(labels_B)
        if self.grid_embedding is not None:
            assert grids_B is not None
            class_BE = class_BE + self.grid_embedding(grids_B)
        x_BTE = torch.cat([class_BE.unsqueeze(1), self.code_embedding(tokens_BP)], dim=1)
        if self.slot_embedding is not None:
            x_BTE = x_BTE + self.slot_embedding(positions.slot_T)
        if self.place_embedding is not None:
            x_BTE = x_BTE + self.place_embedding(positions.own_T)
        if self.target_embedding is not None:
            x_BTE = x_BTE + self.target_embedding(positions.target_T)
        return x_BTE

    def _initialize(self) -> None:
        """Normal(0, 0.02), residual outputs scaled by depth (Radford et al. 2019, GPT-2, section 2.3), head zero."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.initialize(0.02, len(self.blocks))
        for embedding in self.children():
            if isinstance(embedding, nn.Embedding):
                nn.init.normal_(embedding.weight, std=0.02)
                no_decay(embedding.weight)  # type: ignore[arg-type]
        if self.grid_embedding is not None:
            nn.init.zeros_(self.grid_embedding.weight)
        nn.init.zeros_(self.head.weight)  # training starts at a loss of exactly ln(V)


def require_length(n_codes: int, length: int, field: str = "tokens_BT") -> None:
    """Raise ``DataError`` for a sequence longer than an image's codes."""
    if length > n_codes:
        raise DataError("more codes than an image has", field=field, found=length, expected=f"up to {n_codes}")
