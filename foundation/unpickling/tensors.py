"""The tensors of a torch file that is a flat dictionary of them, as published weights mostly are."""

from __future__ import annotations

from pathlib import Path

import torch

from foundation.errors import CheckpointError
from foundation.unpickling.lazy_tensor import LazyTensor
from foundation.unpickling.torch_files import read_torch_file


def read_tensors(path: Path, fix: str) -> dict[str, torch.Tensor]:
    """Name -> tensor, in the host's memory; nothing in the file is run.

    Args:
        path: a file that ``torch.save`` wrote.
        fix: what the reader of an error should do.

    Raises:
        CheckpointError: damaged, or something else than a dictionary of tensors.
    """
    try:
        values = read_torch_file(path)
    except (CheckpointError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"cannot be read: {reason}", field=str(path), fix=fix) from error
    flat = isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, LazyTensor) for name, value in values.items()
    )
    if not flat:
        raise CheckpointError("is not a dictionary of tensors", field=str(path), found=type(values).__name__, fix=fix)
    return {name: value.read() for name, value in values.items()}
