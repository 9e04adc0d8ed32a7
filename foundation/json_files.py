"""Writing JSON whole, and reading JSON that may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foundation.errors import CheckpointError


def json_text(values: Any, *, indent: int | None = None) -> bytes:
    """JSON with sorted keys: the same bytes for the same values. NaN, which JSON cannot hold, is a ``ValueError``."""
    return json.dumps(values, indent=indent, sort_keys=True, allow_nan=False).encode()


def read_json(path: Path, keys: tuple[str, ...], *, fix: str) -> dict[str, Any]:
    """The object in ``path``, which must have ``keys``.

    Raises:
        CheckpointError: the file is missing, not JSON, not an object, or lacks a key; it ends with ``fix``.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix=fix) from error
    missing = [key for key in keys if not isinstance(values, dict) or key not in values]
    if missing:
        raise CheckpointError(
            "is damaged or of another format", field=str(path), found="no " + ", ".join(missing), fix=fix
        )
    return dict(values)
