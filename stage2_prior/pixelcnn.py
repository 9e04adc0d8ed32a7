"""Gated PixelCNN over a grid of codes: masked convolutions instead of attention, as a baseline.

Source: van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders", arXiv:1606.05328, section 2: a
vertical stack that sees the rows above and a horizontal one that sees the codes to the left, so that no code before the
predicted one is out of sight (section 2.2), joined by gates (Eq. 2) that the class moves (Eq. 3).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn import functional as F

from foundation.codes.spec import CodeSpec
from foundation.config import require
from foundation.training.linear import Linear
from foundation.training.optim import no_decay
from stage2_prior.config import PriorConfig
from stage2_prior.positions import PositionTables
from stage2_prior.prior import PriorModel


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        width: channels E of each stack.
        reach: rows above and columns to each side that a convolution sees.
        n_classes: rows of the class table.
        dropout: of what the horizontal stack adds, in training.
    """

    def __init__(self, width: int, reach: int, n_classes: int, dropout: float) -> None:
        super().__init__()
        self.reach, self.dropout = reach, dropout
        self.vertical = nn.Conv2d(width, 2 * width, (reach + 1, 2 * reach + 1))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, reach + 1))
        self.down = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.class_gates = nn.Embedding(n_classes, 4 * width)
        nn.init.zeros_(self.class_gates.weight)
        no_decay(self.class_gates.weight)  # type: ignore[arg-type]

    def forward(
        self, above_BEHW: torch.Tensor, left_BEHW: torch.Tensor, labels_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the rows above, and of those and the codes to the left; both (B, E, H, W) => the same."""
        reach = self.reach
        for_above, for_left = self.class_gates(labels_B)[:, :, None, None].chunk(2, 1)
        above = self.vertical(F.pad(above_BEHW, (reach, reach, reach, 0)))
        left = self.horizontal(F.pad(left_BEHW, (reach, 0))) + self.down(above)
        added = self.out(_gated(left + for_left))
        return _gated(above + for_above), left_BEHW + F.dropout(added, self.dropout, self.training)


def _gated(x: torch.Tensor) -> torch.Tensor:
    """tanh(first half) * sigmoid(second half) of the channels: Eq. 2."""
    first, second = x.chunk(2, 1)
    return first.tanh() * second.sigmoid()


class PixelCNN(PriorModel):
    """p(codes) = prod_t p(code_t | class, codes before t), by convolutions.

    Args:
        config: ``d_model`` channels, ``n_layers`` layers that each see ``reach`` rows and columns; ``dropout``.
        spec: of one grid of codes.

    Raises:
        ConfigError: codes of several slots, or images of several shapes.
    """

    is_masked, is_cached = False, False

    def __init__(self, config: PriorConfig, spec: CodeSpec) -> None:
        super().__init__(config, spec)
        n_slots, fix = len(spec.slots), "set prior.model.block to llama"
        require(n_slots == 1, "prior.model.block", config.block, f"llama or gpt for codes of {n_slots} slots", fix)
        require(spec.n_grids == 1, "prior.model.block", config.block, "llama or gpt for images of several shapes", fix)
        n_layers, _, width = config.shape
        self.position_tables = PositionTables(spec, config)
        self.code_embedding = nn.Embedding(self.vocab_size, width)
        nn.init.normal_(self.code_embedding.weight, std=0.5)
        no_decay(self.code_embedding.weight)  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(
            GatedLayer(width, config.reach, self.n_classes + 1, config.dropouts.residual) for _ in range(n_layers)
        )
        self.features = nn.Conv2d(width, width, 1)
        self.head = Linear(width, self.vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)  # training starts at a loss of exactly ln(V)

    def hidden_states(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        orders_BT: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
        after: Collection[int] = (),
        shares_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Features of each code, of those before it: (B, T, E); see ``PriorModel.hidden_states``.

        ``tokens_BT`` are whole rows of the grid or a part of the last one.
        """
        require(orders_BT is None, "orders_BT", "orders", "none: a PixelCNN predicts in raster order")
        found, expected = sorted(after), "null for a PixelCNN, which has no states to align"
        require(not after, "prior.training.regularizer", found, expected)
        n_columns, length = self.spec.levels[0].width, tokens_BT.shape[1]
        n_rows = -(-length // n_columns)
        tokens_BT = F.pad(tokens_BT, (0, n_rows * n_columns - length))
        x_BEHW = self.code_embedding(tokens_BT).unflatten(1, (n_rows, n_columns)).permute(0, 3, 1, 2)
        above, left = F.pad(x_BEHW, (0, 0, 1, -1)), F.pad(x_BEHW, (1, -1))  # at each place, those before it
        for layer in self.blocks:
            above, left = layer(above, left, labels_B)
        hidden_BTE = F.relu(self.features(F.relu(left))).flatten(2).transpose(1, 2)
        return hidden_BTE[:, :length], {}

    def zero_residual_outputs(self) -> None:
        """Let every layer leave the horizontal stack as it is, as training may begin."""
        for layer in self.blocks:
            assert isinstance(layer, GatedLayer)
            nn.init.zeros_(layer.out.weight)
            nn.init.zeros_(layer.out.bias)  # type: ignore[arg-type]
