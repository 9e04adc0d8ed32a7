"""The prior as a transformers model: ``from_pretrained``, ``AutoModel``, a loss, activation checkpointing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from foundation.hardware import hide_broken_torchvision
from foundation.storage.serialization import tensors_sha256
from stage2_prior.prior import MODEL_TYPE, PriorModel

hide_broken_torchvision()

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers.utils import ModelOutput  # noqa: E402


@dataclass
class PriorOutput(ModelOutput):
    """What ``Prior`` returns.

    Attributes:
        loss: mean negative log-likelihood of the targets, nats, a float32 scalar; None without targets.
        logits: (B, T, V), see ``PriorModel.forward``.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class PriorHubConfig(PreTrainedConfig):
    """``config.json`` of a prior folder."""

    model_type = MODEL_TYPE
    prior: dict[str, Any] | None = None
    code_spec: dict[str, Any] | None = None
    weights_sha256: str | None = None


class Prior(PreTrainedModel):
    """Distribution over grids of codes: a transformers shell over ``PriorModel``, which is ``.model`` here.

    >>> loss = prior(tokens_BT, labels_B, targets_BT=tokens_BT).loss  # doctest: +SKIP
    """

    config_class = PriorHubConfig
    base_model_prefix = "model"
    main_input_name = "tokens_BT"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]

    def __init__(self, config: PriorHubConfig) -> None:
        super().__init__(config)
        self.model = PriorModel.from_settings({"prior": config.prior, "code_spec": config.code_spec})
        self.post_init()

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """As in transformers; the hash of the weights as they are now goes into ``config.json``."""
        self.config.weights_sha256 = tensors_sha256(self.model.state_dict())
        super().save_pretrained(*arguments, **options)

    def forward(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor | None = None,
        targets_BT: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> PriorOutput | tuple[torch.Tensor, ...]:
        """Teacher-forced logits and, with targets, their loss.

        Args:
            tokens_BT: all T codes of each image, int64; entry t is predicted from those before it.
            labels_B: class numbers, int64, ``model.null_class`` for none; None is no class for all.
            targets_BT: codes to score, usually ``tokens_BT``; -100 leaves a code out.
            return_dict: False returns a tuple without what is None.
        """
        if labels_B is None:
            labels_B = torch.full_like(tokens_BT[:, 0], self.model.null_class)
        logits_BTV, loss = self.model(tokens_BT, labels_B), None
        if targets_BT is not None:
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())
        output = PriorOutput(loss=loss, logits=logits_BTV)
        return output if return_dict else output.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        """The table of codes."""
        return self.model.code_embedding

    def _init_weights(self, module: nn.Module) -> None:
        """The plain modules initialise themselves."""


AutoConfig.register(MODEL_TYPE, PriorHubConfig, exist_ok=True)
AutoModel.register(PriorHubConfig, Prior, exist_ok=True)
