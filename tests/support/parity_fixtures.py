"""Parity fixtures: small models of published systems with the tensors that these compute.

Recorded ones lie beside the repository, live ones are made by ``live_parity``. Here: how a fixture is read, how its
prior is imported by the command line, and how close two results must be.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_run import ROOT

from stage2_prior.prior import PriorModel

PARITY = ROOT.parent / "shared" / "parity"
LLAMAGEN = ["llamagen_gpt/grid4", "llamagen_gpt/grid6"]
TAMING = ["taming/net2net_class", "taming/net2net_uncond"]
TOLERANCE = 1e-4
NO_PACKAGE = "recorded parity fixtures are absent, and no installed package computes this system"
Tessera = Callable[..., tuple[int, str]]
"""The command line as a function: arguments => exit status, what it printed."""


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
    """The fixture's weights as one safetensors file, made if it stores none; skips for a case that no package has."""
    if not folder.is_dir():
        pytest.skip(NO_PACKAGE)
    stored = folder / "state.safetensors"
    if stored.is_file():
        return stored
    path = where / "state.safetensors"
    save_file(procedural_state(folder), path)
    return path


def expected(folder: Path) -> dict[str, torch.Tensor]:
    """Inputs and outputs of a fixture; skips for a system that no installed package computes."""
    path = folder / "io.safetensors"
    io = load_file(path) if path.is_file() else {}
    return io or pytest.skip(NO_PACKAGE)


def imported(case: str, parity: Path, tmp_path: Path, tessera: Tessera, *options: object) -> Path:
    """Import a fixture with its configuration; its format must be recognised."""
    folder, out = parity / case, tmp_path / "out"
    status, said = tessera(
        "import", state_file(folder, tmp_path), "-o", out, "--config", folder / "config.json", *options
    )
    assert status == 0 and said.startswith(case.split("/")[0]), said
    return out


def prior_in(out: Path) -> PriorModel:
    """The prior of a generator's folder, or of a prior's own."""
    return PriorModel.load(out / "prior" if (out / "prior").is_dir() else out)


def labels_of(prior: PriorModel, io: dict[str, torch.Tensor]) -> torch.Tensor:
    """The fixture's classes, or none."""
    return io.get("class_labels", torch.full((len(io["codes"]),), prior.null_class))


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Require equality within the fixtures' tolerance."""
    assert found.shape == wanted.shape
    assert float((found.detach() - wanted).abs().max()) <= TOLERANCE
