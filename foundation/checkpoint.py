"""Checkpoints to resume from: a folder per step, complete or absent, verified before use.

Each holds ``state.safetensors``, ``state.json`` and ``MANIFEST.json`` with the SHA-256 of both.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation import durable
from foundation.errors import CheckpointError
from foundation.tensor_files import load_state, save_state, split_state

_NAME = re.compile(r"step-(\d{8})")
_MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        step: optimizer steps done when it was saved.
        state: what was saved.
        skipped: newer folders that failed verification, each with its reason.
    """

    step: int
    state: dict[str, Any]
    skipped: tuple[str, ...] = ()


def save_checkpoint(root: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Publish ``root/step-<step>`` and then remove all but the newest ``keep`` verified ones.

    Raises:
        StorageError: the disk is too full or refused; earlier checkpoints are untouched.
    """
    path = root / f"step-{step:08d}"
    if path.exists():
        if _why_broken(path) is None:
            return path
        durable.remove_folder(path)
    size = sum(tensor.numel() * tensor.element_size() for tensor in split_state(state)[1].values())
    durable.require_free_space(root, int(1.1 * size) + 2**20, "a checkpoint")

    def fill(folder: Path) -> None:
        save_state(folder, state)
        files = {each.name: durable.file_sha256(each) for each in sorted(folder.iterdir())}
        (folder / _MANIFEST).write_text(json.dumps({"format": 1, "step": step, "sha256": files}, sort_keys=True))

    def verify(folder: Path) -> None:
        reason = _why_broken(folder)
        if reason is not None:
            raise CheckpointError(f"did not survive being written: {reason}", field=str(path), fix="check the disk")

    durable.publish_folder(path, fill, verify)
    _rotate(root, keep)
    return path


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None when there is none at all."""
    skipped: list[str] = []
    for step, path in _folders(root):
        reason = _why_broken(path)
        if reason is None:
            return Checkpoint(step, load_state(path), tuple(skipped))
        skipped.append(f"{path.name}: {reason}")
    if skipped:
        raise CheckpointError(
            "no checkpoint can be used",
            field=str(root),
            found="; ".join(skipped),
            fix="delete that folder to start this stage from the beginning",
        )
    return None


def _folders(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every published checkpoint, newest first."""
    if not root.is_dir():
        return []
    matches = ((_NAME.fullmatch(each.name), each) for each in root.iterdir() if each.is_dir())
    return sorted(((int(match[1]), each) for match, each in matches if match), reverse=True)


def _why_broken(path: Path) -> str | None:
    """None for a complete, undamaged checkpoint; else the reason."""
    try:
        files = json.loads((path / _MANIFEST).read_text())["sha256"]
        for name, expected in files.items():
            if durable.file_sha256(path / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _rotate(root: Path, keep: int) -> None:
    verified = [path for _, path in _folders(root) if _why_broken(path) is None]
    for path in verified[max(keep, 1) :]:
        durable.remove_folder(path)
