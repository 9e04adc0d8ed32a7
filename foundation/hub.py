"""Base of the models that transformers opens, and the hub's refusals as errors of this package."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch

from foundation.arguments import as_path
from foundation.errors import CheckpointError, TesseraError, hub_refusals, one_line, refusals
from foundation.hardware import hide_broken_torchvision
from foundation.storage.serialization import tensors_sha256

hide_broken_torchvision()

from transformers import PreTrainedModel  # noqa: E402


class HubModel(PreTrainedModel):
    """A transformers model around a plain module, ``model``.

    Attributes:
        part: name of the model's folder in a run folder and in a generator's repository.
    """

    part: ClassVar[str]
    accepts_loss_kwargs = False
    """for transformers' Trainer: ``forward`` takes unknown arguments only to refuse them"""
    model: Any
    """the plain module"""

    @classmethod
    def from_pretrained(cls, folder: Any, *arguments: Any, **options: Any) -> Self:  # type: ignore[override]
        """As in transformers; also of a run folder, whose own model of this kind is opened.

        Args:
            folder: a model folder, a run folder, or a model on the hub (of a generator: with ``subfolder``).
            arguments, options: of transformers.

        Raises:
            CheckpointError: no such model, a damaged one, or an option that transformers refuses.
        """
        path = as_path(folder, "folder")
        if not (path / "config.json").is_file() and (path / cls.part / "config.json").is_file():
            path = path / cls.part
        if path.is_dir() and "subfolder" not in options and not (path / "config.json").is_file():
            fix = f"give a run folder with a finished {cls.part}, or a folder that {cls.__name__} saved"
            raise CheckpointError("holds no model", field=str(folder), found="no config.json", fix=fix)
        try:
            return super().from_pretrained(str(path), *arguments, **options)  # type: ignore[no-any-return]
        except TesseraError:
            raise
        except Exception as error:  # transformers and the hub's client have many
            fix = "give a run folder, a model folder, or OWNER/NAME of a model on the hub, which needs a network"
            raise CheckpointError(f"cannot be opened: {one_line(error)}", field=str(folder), fix=fix) from error

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """As in transformers; the hash of the weights as they are now goes into ``config.json``.

        Raises:
            StorageError: the folder cannot be written, or the hub refused.
        """
        self.config.weights_sha256 = tensors_sha256(self.model.state_dict())
        target = str(arguments[0]) if arguments else str(options.get("save_directory"))
        as_path(arguments[0] if arguments else options.get("save_directory"), "save_directory")
        with refusals("could not be saved", target, "give a folder that can be written, then try again"):
            super().save_pretrained(*arguments, **options)

    def push_to_hub(self, repo_id: str, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        """As in transformers.

        Raises:
            StorageError: the hub refused, or cannot be reached.
        """
        with hub_refusals(repo_id):
            return super().push_to_hub(repo_id, *arguments, **options)  # type: ignore[arg-type]

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The plain modules initialise themselves."""
