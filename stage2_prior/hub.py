"""The prior as a transformers model: ``Prior.from_pretrained(folder)``, ``AutoModel``, ``push_to_hub``."""

from __future__ import annotations

from typing import Any

import torch

from foundation.codes.spec import CodeSpec
from foundation.hardware import hide_broken_torchvision
from foundation.storage.serialization import tensors_sha256
from stage2_prior.prior import MODEL_TYPE, PriorModel

hide_broken_torchvision()

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel  # noqa: E402


class PriorHubConfig(PreTrainedConfig):
    """``config.json`` of a prior folder."""

    model_type = MODEL_TYPE
    prior: dict[str, Any] | None = None
    code_spec: dict[str, Any] | None = None
    weights_sha256: str | None = None


class Prior(PreTrainedModel):
    """Distribution over grids of codes; see ``PriorModel``, which does the work and is ``.model`` here."""

    config_class = PriorHubConfig
    base_model_prefix = "model"
    main_input_name = "tokens_BT"

    def __init__(self, config: PriorHubConfig) -> None:
        super().__init__(config)
        self.model = PriorModel.from_settings({"prior": config.prior, "code_spec": config.code_spec})
        self.post_init()

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """As in transformers; the hash of the weights as they are now goes into ``config.json``."""
        self.config.weights_sha256 = tensors_sha256(self.model.state_dict())
        super().save_pretrained(*arguments, **options)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The plain modules initialise themselves."""

    def forward(self, tokens_BT: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Teacher-forced logits, (B, T, V); see ``PriorModel.forward``."""
        return self.model(tokens_BT, labels_B)  # type: ignore[no-any-return]

    @property
    def spec(self) -> CodeSpec:
        """What the codes are."""
        return self.model.spec


AutoConfig.register(MODEL_TYPE, PriorHubConfig, exist_ok=True)
AutoModel.register(PriorHubConfig, Prior, exist_ok=True)
