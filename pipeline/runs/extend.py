"""Extending a stage of a run to another number of steps: what it needs, and what becomes of what was made before.

While a stage is extended, a note in the run folder says so; the old model stays until the new one is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation.errors import CheckpointError
from foundation.storage import durable
from pipeline.runs.folder import RunFolder

_DRAWN_FROM_PRIOR = ("samples", "gallery")


def is_final(folder: RunFolder, stage: str) -> bool:
    """Whether the model of a stage exists and is not being extended."""
    return bool(getattr(folder, stage).exists()) and not _note(folder, stage).exists()


def begin(folder: RunFolder, stage: str, old: int, new: int) -> None:
    """Note that a stage, finished or not, goes on to another number of steps.

    Args:
        folder: of the run.
        stage: ``tokenizer`` or ``prior``.
        old, new: steps.

    Raises:
        CheckpointError: it has done more steps, its checkpoints are gone, or results depend on its model.
    """
    field, checkpoints = f"--{stage}.training.fit.steps", folder.checkpoints(stage)
    done = max((int(each.name.removeprefix("step-")) for each in checkpoints.glob("step-*[0-9]")), default=0)
    if done > new:
        fix = "give more steps, or another --out"
        raise CheckpointError("is less than the run has done", field=field, found=new, expected=f"{done}+", fix=fix)
    model = getattr(folder, stage)
    if not model.exists():
        return
    if done == 0:
        what = f"cannot be changed: the checkpoints of these {old:,} steps are gone"
        fix = f"train on from the model in a new run: --{stage}.start_from {model} --out ANOTHER"
        raise CheckpointError(what, field=field, found=new, expected=old, fix=fix)
    made = [each for each in (folder.codes, folder.prior, folder.checkpoints("prior")) if each.exists()]
    if stage == "tokenizer" and made:
        what = f"cannot be changed: {', '.join(each.name for each in made)} belong to the tokenizer of {old:,} steps"
        fix = f"extend it in a new run: --tokenizer.start_from {model} --out ANOTHER; or move these folders away"
        raise CheckpointError(what, field=field, found=new, expected=old, fix=fix)
    durable.replace_file(_note(folder, stage), json.dumps({"from": old, "to": new}).encode())


def publish(folder: RunFolder, stage: str, save: Callable[[Path], None], say: Callable[[str], Any]) -> None:
    """Save the model of a stage, in place of one that was extended; what was drawn with that one is set aside."""
    note = _note(folder, stage)
    if not note.exists():
        durable.publish_folder(getattr(folder, stage), save)
        return
    old = int(json.loads(note.read_bytes())["from"])
    durable.replace_folder(getattr(folder, stage), save)
    for name in _DRAWN_FROM_PRIOR if stage == "prior" else ():
        drawn = getattr(folder, name)
        if drawn.exists():
            kept = _free_name(drawn.with_name(f"{drawn.name}-at-{old}-steps"))
            durable.rename_folder(drawn, kept)
            say(f"{name} of the prior of {old:,} steps: {kept}")
    durable.remove_file(note)


def _note(folder: RunFolder, stage: str) -> Path:
    return folder.root / f"{stage}.extending.json"


def _free_name(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}-{i}") for i in range(2, 1000))
    return path if not path.exists() else next(each for each in numbered if not each.exists())
