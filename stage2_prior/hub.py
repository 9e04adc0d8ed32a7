"""The prior as a transformers model: ``from_pretrained``, ``AutoModel``, a loss, activation checkpointing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from foundation.arguments import refuse_unknown, require_type
from foundation.errors import DataError
from foundation.hub import HubModel  # first: it guards the imports of transformers
from stage2_prior.prior import MODEL_TYPE, PriorModel

from transformers import AutoConfig, AutoModel, PreTrainedConfig  # isort: skip
from transformers.utils import ModelOutput  # isort: skip

_IGNORED = -100
"""Marks a target that does not count; the number is torch's."""
_HINTS = {
    "input_ids": "the codes are tokens_BT",
    "labels": "classes are labels_B, codes to score are targets_BT",
    "attention_mask": "leave it out: every image has all its codes",
    "inputs_embeds": "give tokens_BT",
}


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


class Prior(HubModel):
    """Distribution over grids of codes: a transformers shell over ``PriorModel``, which is ``.model`` here.

    >>> loss = prior(tokens_BT, labels_B, targets_BT=tokens_BT).loss  # doctest: +SKIP
    """

    part = "prior"
    config_class = PriorHubConfig
    base_model_prefix = "model"
    main_input_name = "tokens_BT"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]

    def __init__(self, config: PriorHubConfig) -> None:
        super().__init__(config)
        self.model = PriorModel.from_settings({"prior": config.prior, "code_spec": config.code_spec})
        self.post_init()

    def forward(
        self,
        tokens_BT: Any = None,
        labels_B: Any = None,
        targets_BT: Any = None,
        return_dict: bool = True,
        grids_B: Any = None,
        **unknown: Any,
    ) -> PriorOutput | tuple[torch.Tensor, ...]:
        """Teacher-forced logits and, with targets, their loss.

        Args:
            tokens_BT: all T codes of each image, of any integer type, or the tokenizer's grids of them; entry t is
                predicted from those before it.
            labels_B: class numbers, ``model.null_class`` for none; None is no class for all.
            targets_BT: codes to score, usually ``tokens_BT``; -100 leaves a code out.
            return_dict: False returns a tuple without what is None.
            grids_B: the grid of each image, where images have several shapes; see ``PriorModel.forward``.
            unknown: refused, with the name to use instead.

        Raises:
            DataError: codes, classes or targets of another shape or outside their range. On a GPU, ranges are not
                checked in training, where that would wait for the device.
            ConfigError: an argument that does not exist.
        """
        refuse_unknown("Prior.forward", unknown, _HINTS)
        require_type("return_dict", return_dict, (bool, type(None)))
        check_range = not (self.training and self.device.type != "cpu")
        codes = tokens_BT
        tokens_BT, labels_B = self.model.checked(tokens_BT, labels_B, check_range=check_range)
        grids_B = self.model.checked_grids(codes, grids_B)
        logits_BTV, loss = self.model(tokens_BT, labels_B, grids_B=grids_B), None
        if targets_BT is not None:
            targets_BT = self._targets(targets_BT, tokens_BT, check_range)
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=_IGNORED)
        output = PriorOutput(loss=loss, logits=logits_BTV)
        return output if return_dict else output.to_tuple()

    def _targets(self, targets_BT: Any, tokens_BT: torch.Tensor, check_range: bool) -> torch.Tensor:
        targets_BT = self.model.as_sequences(targets_BT, "targets_BT")
        found, expected = tuple(targets_BT.shape), tuple(tokens_BT.shape)
        problem = "are not as many as the codes"
        DataError.unless(found == expected, problem, field="targets_BT", found=found, expected=expected)
        if check_range:
            counted = torch.where(targets_BT == _IGNORED, 0, targets_BT)
            self.model.require_codes(counted, "targets_BT")
        return targets_BT

    def get_input_embeddings(self) -> nn.Module:
        """The table of codes."""
        return self.model.code_embedding


AutoConfig.register(MODEL_TYPE, PriorHubConfig, exist_ok=True)
AutoModel.register(PriorHubConfig, Prior, exist_ok=True)
