"""Model folders to use (not to resume from): ``config.json`` and ``model.safetensors``, as transformers lays them out.

Keys in the weight file start with ``model.``, the name under which the transformers shells hold the plain module, so
that both open the same folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation import durable
from foundation.errors import CheckpointError
from foundation.json_files import json_text, read_json
from foundation.tensor_files import load_tensors, tensors_sha256, write_tensors

PREFIX = "model."
WEIGHTS = "model.safetensors"
REMEDY = "in a run folder: delete this part and run tessera run again; elsewhere: take it anew from where it came"


def save_model_folder(
    folder: Path, module: nn.Module, model_type: str, architecture: str, settings: dict[str, Any]
) -> None:
    """Write ``config.json`` and the weights into an existing, empty folder.

    Raises:
        StorageError: the disk refused, or gave back something else.
    """
    hashed = {"weights_sha256": tensors_sha256(module.state_dict())}
    config = {"model_type": model_type, "architectures": [architecture], **settings, **hashed}
    durable.write_bytes(folder / "config.json", json_text(config, indent=1))
    tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})


def load_model_folder(
    folder: Path, model_type: str, keys: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings, among them ``keys``, and the weights (without prefix) of a model folder.

    Raises:
        CheckpointError: no such folder, a damaged file, another type of model, or weights that were changed.
    """
    path = folder / "config.json"
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else "a folder without config.json"
        raise CheckpointError("is not a model folder", field=str(folder), found=found, fix="check the path")
    settings = read_json(path, ("model_type",), fix=REMEDY)
    if settings["model_type"] != model_type:
        raise CheckpointError(
            "is another type of model", field=str(folder), found=settings["model_type"], expected=model_type
        )
    settings = read_json(path, (*keys, "weights_sha256"), fix=REMEDY)
    tensors = {name.removeprefix(PREFIX): value for name, value in load_tensors(folder / WEIGHTS).items()}
    if tensors_sha256(tensors) != settings["weights_sha256"]:
        raise CheckpointError("the weights were changed or damaged after saving", field=str(folder), fix=REMEDY)
    return settings, tensors
