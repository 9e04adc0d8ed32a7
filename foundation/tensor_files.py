"""Any nested state to safetensors + JSON and back: no pickle is written or read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foundation.errors import CheckpointError

_TENSOR = "__tensor__"


def split_state(state: Any, prefix: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """Separate a nested state into a JSON tree and a flat dictionary of tensors.

    Mappings keep their key types (``int`` keys are marked), sequences become lists.
    """
    if isinstance(state, torch.Tensor):
        return {_TENSOR: prefix}, {prefix: state.detach().cpu().contiguous().clone()}
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(state, dict):
        tree: dict[str, Any] = {}
        for key, value in state.items():
            name = f"#{key}" if isinstance(key, int) else str(key)
            tree[name], inner = split_state(value, f"{prefix}/{name}" if prefix else name)
            tensors |= inner
        return tree, tensors
    if isinstance(state, (list, tuple)):
        items = []
        for i, value in enumerate(state):
            item, inner = split_state(value, f"{prefix}/{i}")
            items.append(item)
            tensors |= inner
        return items, tensors
    return state, tensors


def join_state(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of ``split_state`` (sequences come back as lists)."""
    if isinstance(tree, dict):
        if set(tree) == {_TENSOR}:
            return tensors[tree[_TENSOR]]
        return {int(k[1:]) if k.startswith("#") else k: join_state(v, tensors) for k, v in tree.items()}
    if isinstance(tree, list):
        return [join_state(value, tensors) for value in tree]
    return tree


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state.json`` and ``state.safetensors`` into an existing folder."""
    tree, tensors = split_state(state)
    (folder / "state.json").write_text(json.dumps(tree, sort_keys=True, allow_nan=False))
    save_file(tensors, folder / "state.safetensors")


def load_state(folder: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        tree = json.loads((folder / "state.json").read_text())
        return join_state(tree, load_tensors(folder / "state.safetensors"))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(folder)) from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing or not in that format.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        fix = "take the file anew from where it came; in a run folder delete its folder and run tessera run again"
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix=fix) from error


def load_weights(module: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict strictly: every key present, no key left over, every shape equal.

    Raises:
        CheckpointError: naming the keys.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if missing or extra or shapes:
        raise CheckpointError(
            "the weights do not fit the configuration",
            field=source,
            found=f"missing {missing[:5]}, left over {extra[:5]}, other shapes {shapes[:5]}",
            fix="the folder mixes two models or was edited: take it anew, or in a run folder delete it and run again",
        )
    module.load_state_dict(tensors)


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in name order."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()
