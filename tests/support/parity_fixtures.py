"""The parity fixtures beside the repository: small models of published systems with the tensors these compute."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

PARITY = Path(__file__).parents[3] / "shared" / "parity"


def procedural_state(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a fixture that stores none, by the rule in the fixtures' README."""
    manifest, config = (json.loads((folder / name).read_text()) for name in ("manifest.json", "config.json"))
    state = {}
    for key, about in manifest.items():
        shape = about["shape"]
        if not about["dtype"].startswith("float"):
            state[key] = torch.zeros(shape, dtype=getattr(torch, about["dtype"]))
            continue
        seed = int.from_bytes(hashlib.sha256(("parity-v1:" + key).encode()).digest()[:8], "little")
        raw = np.random.Philox(key=seed).random_raw(int(np.prod(shape)))
        u = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
        if len(shape) == 1 and key.endswith("weight"):
            values = np.float32(1) + np.float32(0.25) * u
        elif len(shape) <= 1:
            values = np.float32(0.1) * u
        else:
            values = np.float32(math.sqrt(3.0 / np.prod(shape[1:]))) * u
        gains = [factor for part, factor in config.get("gains", []) if part in key]
        state[key] = torch.from_numpy(values.reshape(shape) * np.float32(math.prod(gains)))
    return state


def state_file(folder: Path, where: Path) -> Path:
    """The fixture's weights as one safetensors file, made if it stores none."""
    stored = folder / "state.safetensors"
    if stored.is_file():
        return stored
    path = where / "state.safetensors"
    save_file(procedural_state(folder), path)
    return path


def expected(folder: Path) -> dict[str, torch.Tensor]:
    """Inputs and outputs of a fixture."""
    return load_file(folder / "io.safetensors")
