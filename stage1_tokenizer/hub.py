"""The tokenizer as a transformers model: ``Tokenizer.from_pretrained(folder)``, ``AutoModel``, ``push_to_hub``."""

from __future__ import annotations

from typing import Any

import torch

from foundation.codes.spec import CodeSpec
from foundation.hardware import hide_broken_torchvision
from foundation.storage.serialization import tensors_sha256
from stage1_tokenizer.tokenizer import MODEL_TYPE, TokenizerModel, TokenizerOutput

hide_broken_torchvision()

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel  # noqa: E402


class TokenizerHubConfig(PreTrainedConfig):
    """``config.json`` of a tokenizer folder."""

    model_type = MODEL_TYPE
    tokenizer: dict[str, Any] | None = None
    preprocess: dict[str, Any] | None = None
    fingerprint: str | None = None
    weights_sha256: str | None = None


class Tokenizer(PreTrainedModel):
    """Images <-> grids of codes; see ``TokenizerModel``, which does the work and is ``.model`` here."""

    config_class = TokenizerHubConfig
    base_model_prefix = "model"
    main_input_name = "images_BCYX"
    _keep_in_fp32_modules_strict = {"quantizer"}

    def __init__(self, config: TokenizerHubConfig) -> None:
        super().__init__(config)
        self.model = TokenizerModel.from_settings({"tokenizer": config.tokenizer, "preprocess": config.preprocess})
        self.post_init()

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """As in transformers; the hash of the weights as they are now goes into ``config.json``."""
        self.config.weights_sha256 = tensors_sha256(self.model.state_dict())
        self.config.fingerprint = self.model.fingerprint
        super().save_pretrained(*arguments, **options)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The plain modules initialise themselves."""

    def forward(self, images_BCYX: torch.Tensor) -> TokenizerOutput:
        """(B, 3|1, Y, X) in [-1, 1] => reconstruction, codes, latents and losses."""
        return self.model(images_BCYX)  # type: ignore[no-any-return]

    def encode(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """(B, 3|1, Y, X) in [-1, 1] => codes, see ``TokenizerModel``."""
        return self.model.encode(images_BCYX)

    def decode(self, codes: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Codes => (B, 3|1, Y, X) images, see ``TokenizerModel``."""
        return self.model.decode(codes, image_size)

    @property
    def spec(self) -> CodeSpec:
        """What the codes are."""
        return self.model.spec


AutoConfig.register(MODEL_TYPE, TokenizerHubConfig, exist_ok=True)
AutoModel.register(TokenizerHubConfig, Tokenizer, exist_ok=True)
