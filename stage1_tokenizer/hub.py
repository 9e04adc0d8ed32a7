"""The tokenizer as a transformers model: ``Tokenizer.from_pretrained(folder)``, ``AutoModel``, ``push_to_hub``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foundation.arguments import refuse_unknown, require_type
from foundation.codes.spec import CodeSpec
from foundation.hub import HubModel  # first: it guards the imports of transformers
from stage1_tokenizer.tokenizer import MODEL_TYPE, TokenizerModel

from transformers import AutoConfig, AutoModel, PreTrainedConfig  # isort: skip
from transformers.utils import ModelOutput  # isort: skip

_HINTS = {"pixel_values": "the images are images_BCYX", "labels": "leave it out: images are their own targets"}


class TokenizerHubConfig(PreTrainedConfig):
    """``config.json`` of a tokenizer folder."""

    model_type = MODEL_TYPE
    tokenizer: dict[str, Any] | None = None
    preprocess: dict[str, Any] | None = None
    fingerprint: str | None = None
    codes_of: dict[str, Any] | None = None
    preview: dict[str, Any] | None = None
    weights_sha256: str | None = None


@dataclass
class TokenizerOutput(ModelOutput):
    """Result of ``Tokenizer.forward``.

    Attributes:
        loss: scalar, mean squared error of the reconstruction plus the sum of ``losses``.
        reconstruction: (B, C, Y, X), nominally in [-1, 1], not clamped.
        codes: as ``TokenizerModel.encode`` returns them.
        latents: (B, C, H, W) float32, before quantization; of the fine grid where there are two.
        losses: the quantizers' terms by name, scalars, already weighted.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None


class Tokenizer(HubModel):
    """Images <-> grids of codes; see ``TokenizerModel``, which does the work and is ``.model`` here.

    In a training loop other than ours a codebook with ``learning: ema`` follows the latents one forward pass late,
    unless the loop calls ``update`` of ``model.quantizers`` after each step.
    """

    part = "tokenizer"
    config_class = TokenizerHubConfig
    base_model_prefix = "model"
    main_input_name = "images_BCYX"
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = {"quantizer"}
    _no_split_modules = ["ResidualBlock", "AttentionBlock", "DVAEBlock", "ViTBlock"]

    def __init__(self, config: TokenizerHubConfig) -> None:
        super().__init__(config)
        self.model = TokenizerModel.from_settings(
            {name: getattr(config, name) for name in ("tokenizer", "preprocess", "codes_of", "preview")}
        )
        self.gradient_checkpointing = False
        self.post_init()

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """As in transformers; the hashes of the weights as they are now go into ``config.json``."""
        self.config.fingerprint = self.model.fingerprint
        super().save_pretrained(*arguments, **options)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """Recompute blocks of the networks in the backward pass instead of storing their activations."""
        self.gradient_checkpointing = enable
        blocks = [each for each in self.model.modules() if type(each).__name__ in self._no_split_modules]
        for i, block in enumerate(blocks):
            plain = functools.partial(type(block).forward, block)
            again = enable and i % every_n_layers == 0
            block.forward = functools.partial(gradient_checkpointing_func, plain) if again else plain  # type: ignore[method-assign]

    def forward(
        self, images_BCYX: Any = None, return_dict: bool | None = None, **unknown: Any
    ) -> TokenizerOutput | tuple[torch.Tensor, ...]:
        """(B, C, Y, X) in [-1, 1] => reconstruction, codes, latents and losses; a tuple if not ``return_dict``.

        Raises:
            DataError: see ``TokenizerModel.features``.
            ConfigError: an argument that does not exist; the message names the one to use.
        """
        refuse_unknown("Tokenizer.forward", unknown, _HINTS)
        require_type("return_dict", return_dict, (bool, type(None)))
        images_BCYX = self.model.as_images(images_BCYX)
        made = self.model(images_BCYX)
        loss = F.mse_loss(made.images_BCYX, images_BCYX.float()) + sum(made.losses.values())
        output = TokenizerOutput(loss, made.images_BCYX, made.codes, made.latents_BCHW, made.losses)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def encode(self, images_BCYX: Any) -> torch.Tensor:
        """(B, C, Y, X) in [-1, 1] => codes, see ``TokenizerModel``."""
        return self.model.encode(images_BCYX)

    def decode(self, codes: Any, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Codes => (B, C, Y, X) images, see ``TokenizerModel``."""
        return self.model.decode(codes, image_size)

    @property
    def spec(self) -> CodeSpec:
        """What the codes are."""
        return self.model.spec


AutoConfig.register(MODEL_TYPE, TokenizerHubConfig, exist_ok=True)
AutoModel.register(TokenizerHubConfig, Tokenizer, exist_ok=True)
