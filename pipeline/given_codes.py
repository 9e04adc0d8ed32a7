"""Codes that a caller gives in the place of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from foundation.codes.spec import CodeSpec, require_codes
from foundation.errors import DataError


def is_codes(images: Any) -> bool:
    """Whether these are codes: a tensor or array of whole numbers."""
    if isinstance(images, torch.Tensor):
        return not images.is_floating_point() and not images.is_complex()
    return isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.integer)


def read_codes(codes: Any, spec: CodeSpec) -> torch.Tensor:
    """Codes as a caller gives them => (B, P) int64, the first P of T codes.

    Args:
        codes: ``GeneratorOutput.codes``, or the first rows or the first codes of them: the dimensions after the first
            are one sequence.
        spec: what the codes are.

    Raises:
        DataError: more codes than an image has, none, or one outside its codebook.
    """
    given = torch.as_tensor(codes).detach()
    if given.ndim < 2 or not given.numel() or given[0].numel() > spec.n_codes or given.dtype == torch.bool:
        raise DataError("are not codes of images", field="images", found=(tuple(given.shape), given.dtype),
                        expected=f"{('B', *spec.shape)}, or the first of these {spec.n_codes} codes",
                        fix="a tensor of images has floats from -1 to 1")  # fmt: skip
    codes_BP = given.reshape(len(given), -1).to(torch.int64)
    whole_BT = np.zeros((len(codes_BP), spec.n_codes), np.int64)
    whole_BT[:, : codes_BP.shape[1]] = codes_BP.cpu().numpy()
    require_codes(whole_BT, spec, "images")
    return codes_BP
