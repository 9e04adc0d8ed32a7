"""What training minimises: the mean negative log-likelihood of codes, and optionally the z-loss."""

from __future__ import annotations

import math

import torch
from torch import nn

from stage2_prior.head_loss import head_loss
from stage2_prior.prior import PriorModel


class PriorLoss(nn.Module):
    """A prior with its loss, as one module for DDP or FSDP to wrap: all parameters are used in its ``forward``.

    Args:
        model: the prior.
        z_loss: weight of the mean squared log-partition, which keeps logits from drifting; 0 for none.
    """

    def __init__(self, model: PriorModel, z_loss: float = 0.0) -> None:
        super().__init__()
        self.model, self.z_loss = model, z_loss

    def forward(
        self, tokens_BT: torch.Tensor, labels_B: torch.Tensor, orders_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch.

        Args:
            tokens_BT: codes in raster order, int64.
            labels_B: classes, int64.
            orders_BT: the orders in which they are predicted; see ``PriorModel.forward``.

        Returns:
            the loss, a float32 scalar: the mean of nll + z_loss * logsumexp^2 over the batch's codes; and detached
            scalars to log: ``nll`` and ``bits_per_code``, and ``logsumexp`` (root mean square) if the z-loss is on.

        Raises:
            DataError, ConfigError: see ``PriorModel.forward``.
        """
        hidden_BTE = self.model.hidden(tokens_BT, labels_B, orders_BT)
        predicted_BT = tokens_BT if orders_BT is None else tokens_BT.gather(1, orders_BT)
        size_N = self.model.sizes(tokens_BT)  # of one size where there are orders: those of several slots are refused
        loss, nll, squared_lse = head_loss(
            hidden_BTE.flatten(0, 1), self.model.head.weight, predicted_BT.flatten(), size_N, self.z_loss
        )
        metrics = {"nll": nll, "bits_per_code": nll / math.log(2)}
        return loss, {**metrics, "logsumexp": squared_lse.sqrt()} if self.z_loss else metrics
