"""Model folders to use (not to resume from): ``config.json`` and ``model.safetensors``, as transformers lays them out.

Keys in the weight file start with ``model.``, the name under which the transformers shells hold the plain module, so
that both open the same folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from foundation.errors import CheckpointError
from foundation.tensor_files import load_tensors

PREFIX = "model."
WEIGHTS = "model.safetensors"


def save_model_folder(
    folder: Path, module: nn.Module, model_type: str, architecture: str, settings: dict[str, Any]
) -> None:
    """Write ``config.json`` and the weights into an existing, empty folder."""
    config = {"model_type": model_type, "architectures": [architecture], **settings}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True, allow_nan=False))
    tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_model_folder(folder: Path, model_type: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings and the weights (without prefix) of a model folder.

    Raises:
        CheckpointError: no such folder, no readable config, or another type of model.
    """
    path = folder / "config.json"
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else "a folder without config.json"
        raise CheckpointError("is not a model folder", field=str(folder), found=found, fix="check the path")
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"config.json is damaged: {error}", field=str(folder)) from error
    if settings.get("model_type") != model_type:
        raise CheckpointError(
            "is another type of model", field=str(folder), found=settings.get("model_type"), expected=model_type
        )
    tensors = load_tensors(folder / WEIGHTS)
    return settings, {name.removeprefix(PREFIX): value for name, value in tensors.items()}
