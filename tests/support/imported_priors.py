"""Priors of the parity fixtures, imported through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from support.parity_fixtures import state_file

from stage2_prior.prior import PriorModel

Tessera = Callable[..., tuple[int, str]]
LLAMAGEN = ["llamagen_gpt/grid4", "llamagen_gpt/grid6"]
TAMING = ["taming/net2net_class", "taming/net2net_uncond"]
TOLERANCE = 1e-4


def imported(case: str, parity: Path, tmp_path: Path, tessera: Tessera, *options: object) -> Path:
    """The fixture, imported with its configuration; its format must be recognised."""
    folder, out = parity / case, tmp_path / "out"
    status, said = tessera(
        "import", state_file(folder, tmp_path), "-o", out, "--config", folder / "config.json", *options
    )
    assert status == 0 and said.startswith(case.split("/")[0]), said
    return out


def prior_in(out: Path) -> PriorModel:
    """The prior of a generator's folder, or of a folder of its own."""
    return PriorModel.load(out / "prior" if (out / "prior").is_dir() else out)


def labels_of(prior: PriorModel, io: dict[str, torch.Tensor]) -> torch.Tensor:
    """The fixture's classes, or none."""
    return io.get("class_labels", torch.full((len(io["codes"]),), prior.null_class))


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Within the fixtures' tolerance."""
    assert found.shape == wanted.shape
    assert float((found.detach() - wanted).abs().max()) <= TOLERANCE
