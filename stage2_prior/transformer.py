"""The transformer prior: it predicts codes from the class and other codes.

``order`` of its settings says which other codes: those before it in raster order, those before it in any order, or
any at once, of which the others are masked (Chang et al. 2022, "MaskGIT", arXiv:2202.04200).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from foundation.codes.spec import CodeSpec
from foundation.config import require
from foundation.errors import DataError
from foundation.training.linear import Linear
from foundation.training.optim import no_decay
from stage2_prior.block import Block, Dropout, LayerCache, stream_norm
from stage2_prior.config import PriorConfig
from stage2_prior.cpu_kernels import sum_type
from stage2_prior.orders import MASKED
from stage2_prior.positions import Positions, PositionTables, Rope
from stage2_prior.prior import PriorModel, require_length

_WAVES = 8
"""of which the strength of guidance is told to the model"""


class TransformerPrior(PriorModel):
    """A transformer over [class, code 0, code 1, ...].

    Causal unless ``order`` is masked: output t is the distribution of code t given those before it, or with an order
    per image, of the code that is predicted t-th. Masked: output t is the distribution of code t given all codes that
    are not ``MASKED``.

    Codes of all levels and depths form one sequence, in the order of ``CodeSpec``. Each slot (a depth of a level) has
    its own rows of the embedding; with several slots, an input also learns which one it predicts. Where images have
    several shapes, an image's codes rotate by the rows and columns of their own grid, and an embedding of the grid,
    zero at first, is added to the class: the prior knows the grid before the first code.

    Args:
        config: size and options.
        spec: of the codes; the prior serves no other.

    """

    def __init__(self, config: PriorConfig, spec: CodeSpec) -> None:
        super().__init__(config, spec)
        self._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        spec = self._spec_of_steps(spec)
        single = config.extra_codes == 0 or len(spec.slots) == 1
        require(single, "extra_codes", config.extra_codes, "0 where there are several levels or depths")
        n_layers, _, d_model = config.shape
        learned, n_grids = config.positions == "learned", spec.n_grids
        self.is_masked, self.is_cached = config.order == "masked", config.order != "masked"
        self.position_tables = PositionTables(spec, config)
        self.class_embedding = nn.Embedding(self.n_classes + 1, d_model)  # the last row is the null class
        self._build_codes(d_model)
        self.slot_embedding = nn.Embedding(len(spec.slots), d_model) if len(spec.slots) > 1 else None
        n_places = n_grids * spec.n_codes
        self.place_embedding = nn.Embedding(1 + n_places, d_model) if learned else None  # row 0 is the class's
        self.target_embedding = nn.Embedding(n_places, d_model) if config.knows_target else None
        self.grid_embedding = nn.Embedding(n_grids, d_model) if n_grids > 1 else None
        self.guidance_projection = nn.Linear(_WAVES, d_model, bias=False) if config.guidance_input else None
        self.mask_embedding = nn.Embedding(1, d_model) if self.is_masked else None
        self.dropout = Dropout(config.dropouts.token)
        self.blocks = nn.ModuleList(Block(config) for _ in range(n_layers))
        self.norm = stream_norm(config)
        self._build_head(d_model)
        self._initialize()

    def _spec_of_steps(self, spec: CodeSpec) -> CodeSpec:
        """What the sequence of predictions is: the codes."""
        return spec

    def _build_codes(self, d_model: int) -> None:
        self.code_embedding = nn.Embedding(self.position_tables.n_rows, d_model)

    def _build_head(self, d_model: int) -> None:
        self.head = Linear(d_model, self.vocab_size, bias=False)

    def _vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """Rows of the code table, (B, P) => (B, P, E)."""
        return self.code_embedding(codes)

    def hidden_states(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        orders_BT: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
        after: Collection[int] = (),
        shares_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Hidden states after the last norm, and after some blocks; see ``PriorModel.hidden_states``.

        Args:
            tokens_BT, labels_B, orders_BT, grids_B: as of ``forward``, int64, of which the length alone is checked;
                ``grids_B`` has an entry for each image if there are several grids, else it is None.
            after: numbers of blocks, from 1.
            shares_B: of a prior with ``guidance_input``: 1 / guidance scale of each image, above 0 to 1; None is 1.

        Returns:
            (B, T, E); and the same by block for those in ``after``.
        """
        tables = self.position_tables
        if self.grid_embedding is not None and grids_B is None:
            grids_B = torch.zeros_like(labels_B)
        if self.is_masked:
            x, rope = self._embed_masked(
                self._class_vectors(labels_B, grids_B, shares_B), tokens_BT, orders_BT, grids_B
            )
            x, states = self._run(x, rope, after)
            return self.norm(x)[:, 1:], {i: state[:, 1:] for i, state in states.items()}
        if orders_BT is not None:
            fix = "train a prior of order any, or leave the orders out"
            expected = "any, or random-to-raster, for other orders"
            require(self.target_embedding is not None, "order", self.config.order, expected, fix)
            positions = tables.ordered(self.orders_in_steps(orders_BT), len(tokens_BT), grids_B)
            tokens_BT = tokens_BT.gather(1, orders_BT)
        inputs = self.in_steps(tokens_BT)
        length = inputs.shape[1]
        require_length(self.n_steps, length)
        if orders_BT is None and grids_B is None:
            positions = tables.on(self.head.weight.device).part(0, length)
        elif orders_BT is None:
            assert grids_B is not None
            positions = tables.of_grids(grids_B).part(0, length)
        class_BE = self._class_vectors(labels_B, grids_B, shares_B)
        x, states = self._run(self._embed(class_BE, inputs[:, :-1], positions), positions.rope, after)
        return self.norm(x), states

    def _run(
        self, x: torch.Tensor, rope: Rope | None, after: Collection[int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """All inputs through all blocks."""
        recompute, x = self.gradient_checkpointing and torch.is_grad_enabled(), self.dropout(x)
        states = {}
        for i, block in enumerate(self.blocks, start=1):
            x = self._gradient_checkpointing_func(block, x, rope) if recompute else block(x, rope)
            if i in after:
                states[i] = x
        return x, states

    def extend(
        self,
        tokens_BQ: torch.Tensor,
        positions: Positions,
        caches: Sequence[LayerCache],
        labels_B: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
        shares_B: torch.Tensor | None = None,
        blocks: Sequence[Callable[..., torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Hidden states of inputs that follow those in a cache, which takes in their keys and values.

        Args:
            tokens_BQ: codes, int64, as of ``in_steps``; with ``labels_B`` they follow the class, the first input.
            positions: of the inputs.
            caches: of each block.
            labels_B: class numbers, int64; None where the class is in the cache.
            grids_B: the grid of each image, where there are several and ``labels_B`` is given.
            shares_B: as of ``hidden_states``, where ``labels_B`` is given.
            blocks: what computes the same as the model's blocks; None takes these.

        Returns:
            (B, Q, E), after the last norm; with the class among the Q.
        """
        class_BE = None if labels_B is None else self._class_vectors(labels_B, grids_B, shares_B)
        x_BQE = self._embed(class_BE, tokens_BQ, positions)
        used: Iterable[Callable[..., torch.Tensor]] = self.blocks if blocks is None else blocks
        for block, cache in zip(used, caches, strict=True):
            x_BQE = block(x_BQE, positions.rope, cache)
        return self.norm(x_BQE)

    def zero_residual_outputs(self) -> None:
        """Let every block be the identity, as training may begin."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.zero_outputs()

    def within_codebook(self) -> TransformerPrior:
        """This prior without its ``extra_codes``, so that every code belongs to an image."""
        if not self.config.extra_codes:
            return self
        with torch.device(self.head.weight.device):
            kept = TransformerPrior(dataclasses.replace(self.config, extra_codes=0), self.spec)
        rows = {"code_embedding.weight", "head.weight"}
        state = {name: x[: kept.vocab_size] if name in rows else x for name, x in self.state_dict().items()}
        kept.load_state_dict(state)
        return kept.to(self.head.weight.dtype).train(self.training)

    def _class_vectors(
        self, labels_B: torch.Tensor, grids_B: torch.Tensor | None, shares_B: torch.Tensor | None
    ) -> torch.Tensor:
        """What the first input knows, (B, E): the class, the grid, and the strength of guidance."""
        class_BE = self.class_embedding(labels_B)
        if self.grid_embedding is not None:
            assert grids_B is not None
            class_BE = class_BE + self.grid_embedding(grids_B)
        if self.guidance_projection is not None:
            shares_B = class_BE.new_ones(len(labels_B)) if shares_B is None else shares_B.to(class_BE.dtype)
            waves = torch.arange(1, _WAVES + 1, device=class_BE.device) * (torch.pi / 2)
            away_BW = ((1 - shares_B).unsqueeze(1) * waves).sin()  # 0 without guidance
            class_BE = class_BE + self.guidance_projection(away_BW.to(class_BE.dtype))
        return class_BE

    def _embed(self, class_BE: torch.Tensor | None, tokens_BP: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Codes at these positions, after the class where it is given => (B, T, E), of 32 bits or more."""
        n_before = 0 if class_BE is None else 1
        if self.slot_embedding is not None:
            tokens_BP = tokens_BP + positions.offset_T[..., n_before:]
        x_BTE = _wide(self._vectors(tokens_BP))
        if class_BE is not None:
            x_BTE = torch.cat([_wide(class_BE).unsqueeze(1), x_BTE], dim=1)
        if self.slot_embedding is not None:
            x_BTE = x_BTE + self.slot_embedding(positions.slot_T)
        if self.place_embedding is not None:
            x_BTE = x_BTE + self.place_embedding(positions.own_T)
        if self.target_embedding is not None:
            x_BTE = x_BTE + self.target_embedding(positions.target_T)
        return x_BTE

    def _embed_masked(
        self,
        class_BE: torch.Tensor,
        tokens_BT: torch.Tensor,
        orders_BT: torch.Tensor | None,
        grids_B: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Rope | None]:
        """The class and all codes in raster order, known or not, with their rotations => (B, 1 + T, E)."""
        require(orders_BT is None, "orders", "orders", "none: a masked prior sees which codes are known")
        found, expected, fix = tokens_BT.shape[1], f"all {self.n_codes} codes", f"mark unknown ones by {MASKED}"
        DataError.unless(
            found == self.n_codes, "are not all codes", field="tokens_BT", found=found, expected=expected, fix=fix
        )
        assert self.mask_embedding is not None
        tables, device = self.position_tables, tokens_BT.device
        rope, own = tables.whole(device, grids_B)
        unknown_BT1 = (tokens_BT < 0).unsqueeze(2)
        known_BT, slot_T = tokens_BT.clamp_min(0), tables.on(device).slot_T
        if self.slot_embedding is not None:
            known_BT = known_BT + tables.first_row_on(device)
        codes_BTE = torch.where(unknown_BT1, self.mask_embedding.weight, self.code_embedding(known_BT))
        if self.slot_embedding is not None:
            codes_BTE = codes_BTE + self.slot_embedding(slot_T)
        x = _wide(torch.cat([class_BE.unsqueeze(1), codes_BTE], dim=1))
        return x if self.place_embedding is None else x + self.place_embedding(own), rope

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
        if self.guidance_projection is not None:
            nn.init.zeros_(self.guidance_projection.weight)
        nn.init.zeros_(self.head.weight)  # training starts at a loss of exactly ln(V)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """The residual stream is kept in 32 bits, whatever the type of the weights."""
    return x.to(sum_type(x.dtype))
