"""From a task in training to its checkpoints and back, on any number of processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foundation.checkpoint import latest_checkpoint, named_tensors, save_checkpoint
from foundation.errors import CheckpointError, TrainingError
from foundation.parallel import on_every_process
from foundation.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Keeper:
    """Saves a task to its checkpoints and restores it; every process calls both.

    Attributes:
        task: what is trained.
        checkpoints: their folder.
        identity: a hash of each thing that determines the result.
        accelerator: devices and processes.
        batch_size: examples in one step, over all processes.
        n_kept: how many checkpoints stay on disk.
    """

    task: Task
    checkpoints: Path
    identity: dict[str, str]
    accelerator: Accelerator
    batch_size: int
    n_kept: int

    def restore(self) -> int:
        """Load the newest sound checkpoint; returns the steps done, 0 without one.

        Raises:
            CheckpointError: none is sound, it belongs to another recipe or data, or processes see different ones.
        """
        found = latest_checkpoint(self.checkpoints)
        seen = on_every_process(0 if found is None else found.step, self.accelerator)
        if len(set(seen)) > 1:
            raise CheckpointError(
                "processes see different checkpoints",
                field=str(self.checkpoints),
                found=f"the newest sound ones are of steps {seen}, process by process",
                fix="put the run folder on a file system that all hosts share",
            )
        if found is None:
            return 0
        for reason in found.skipped:
            self.accelerator.print(f"skipped a damaged checkpoint: {reason}")
        saved = found.state["identity"]
        changed = [name for name, value in self.identity.items() if saved.get(name) != value]
        if changed:
            raise CheckpointError(
                f"the checkpoint was made with something else: {', '.join(changed)} changed since",
                field=str(self.checkpoints),
                fix="undo the change, give another --run_dir, or delete that folder to train this stage anew",
            )
        self.task.load_state_dict(found.state["task"])
        self.accelerator.print(f"continuing from step {found.step} ({self.checkpoints})")
        return found.step

    def save(self, step: int) -> None:
        """Publish a checkpoint after ``step`` steps; every process waits until it is there.

        Raises:
            TrainingError: something in it is not finite; nothing is written then.
        """
        state = self.task.state_dict()
        _require_finite(state, self.accelerator)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            samples = step * self.batch_size
            whole = {"identity": self.identity, "samples_seen": samples, "task": state}
            save_checkpoint(self.checkpoints, step, whole, keep=self.n_kept)
        self.accelerator.wait_for_everyone()


def _require_finite(state: dict[str, Any], accelerator: Accelerator) -> None:
    """What is not finite is never saved: the last checkpoint stays a sound one. All processes decide alike."""
    bad = next((name for name, value in named_tensors(state) if not _is_finite(value)), None)
    if any(on_every_process(int(bad is not None), accelerator)):
        raise TrainingError(
            f"the weights are no longer finite ({bad or 'on another process'})",
            fix="lower the learning rate; the last checkpoint is sound, remove it to start over",
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
