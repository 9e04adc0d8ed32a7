"""Checkpoints for resuming: one folder per step, complete or absent, verified before use, written beside training.

Each holds ``state.safetensors``, ``state.json`` and ``MANIFEST.json`` with the SHA-256 of both and of itself.
``CheckpointManager`` saves a task in training and restores it, on any number of processes, with another length too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from foundation.config import digest
from foundation.errors import CheckpointError
from foundation.storage import durable
from foundation.storage.serialization import json_text, load_state, save_state
from foundation.training.lengths import Schedule
from foundation.training.optim import DivergedError
from foundation.training.parallel import on_every_process
from foundation.training.saving import BackgroundSave, first_not_finite, named_tensors
from foundation.training.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator


_NAME = re.compile(r"step-(\d{8,})")
_MANIFEST = "MANIFEST.json"
_FILES = {"state.json", "state.safetensors"}
_FORMAT = 2
_MIN_KEPT = 2  # the newest may be damaged
Stamps = dict[Path, list[tuple[int, int, int]]]
"""folders that this process verified: inode, size and time of change of their files then"""
Identity = Callable[[int], dict[str, str]]
"""number of steps => a hash of everything that determines a training's result, by name"""


@dataclass
class CheckpointManager:
    """Saves a task to its checkpoints and restores it; every process calls all methods.

    As a context it ends when the last checkpoint is on disk, however the training ended.

    Attributes:
        task: what is trained.
        checkpoints: their folder.
        identity: number of steps => a hash of everything that determines the result, by name.
        schedule: the training's length and learning rates.
        accelerator: devices and processes.
        batch_size: examples in one step, over all processes.
        n_kept: how many checkpoints stay on disk.
        sound_until: step of the latest evaluation that was sound, -1 before the first; of the checkpoints up to it the
            newest stays too, however many follow.
    """

    task: Task
    checkpoints: Path
    identity: Identity
    schedule: Schedule
    accelerator: Accelerator
    batch_size: int
    n_kept: int
    sound_until: int = -1
    _stale: list[int] = field(default_factory=list)
    _verified: Stamps = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._background = BackgroundSave(self.accelerator)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            failed = self._background.close()
            if failed is not None:
                self.accelerator.print(f"the last checkpoint could not be saved: {failed}")

    def restore(self) -> int:
        """Load the newest sound checkpoint that this length can continue from; returns the steps done, 0 without one.

        Raises:
            CheckpointError: none is sound, it belongs to another recipe or data, it has more steps than the length, or
                processes see different ones.
        """
        found = self._newest()
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
        n_steps, length = self.schedule.n_steps, self._length(found)
        self._stale = [
            step for step, own in checkpoint_lengths(self.checkpoints) if step > found.step and own != n_steps
        ]
        self.task.load_state_dict(found.state["task"])
        self.accelerator.print(f"continuing from step {found.step} ({self.checkpoints})")
        if length != n_steps:
            self.accelerator.print(self.schedule.note(found.step, length))
        return found.step

    def _newest(self) -> Checkpoint | None:
        """The newest checkpoint of this length, or of the steps that another has in common with it; else the newest."""
        newest, n_steps = latest_checkpoint(self.checkpoints), self.schedule.n_steps
        if newest is None:
            return None
        length = self._length(newest)
        if newest.step > n_steps:
            what, fix = "has done more steps than that", "give more steps, or another run folder: --out"
            found, expected = f"steps: {n_steps:,}", f"{newest.step:,} or more"
            raise CheckpointError(what, field=str(self.checkpoints), found=found, expected=expected, fix=fix)
        if length == n_steps or not self.schedule.has_plateau:
            return newest

        def continues(step: int, own: int | None) -> bool:
            own = length if own is None else own
            return own == n_steps or step <= Schedule(own, self.schedule.optims).shared_steps(n_steps)

        return latest_checkpoint(self.checkpoints, continues) or newest

    def _length(self, found: Checkpoint) -> int:
        """The length of the training that saved a checkpoint; early versions did not note it, but its hash.

        Raises:
            CheckpointError: it was made with something else than a training of another length.
        """
        saved, n_steps = found.state["identity"], self.schedule.n_steps
        lengths = [n_steps, found.step] if found.length is None else [found.length]
        for length in lengths:
            if all(saved.get(name) == value for name, value in self.identity(length).items()):
                return length
        changed = [name for name, value in self.identity(lengths[0]).items() if saved.get(name) != value]
        raise CheckpointError(
            f"the checkpoint was made with something else: {', '.join(changed)} changed since",
            field=str(self.checkpoints),
            fix="undo the change, or train in a new run folder: --out",
        )

    def save(self, step: int) -> None:
        """Copy the state after ``step`` steps and publish it in a thread; a save before is on disk then.

        Raises:
            DivergedError: something in it is not finite; nothing is written then.
            StorageError: the save before failed.
        """
        self._background.settle(wait=True)
        state = self.task.state_dict()
        self._require_finite(state)
        schedule, stale = self.schedule, self._stale
        kept_too = (self.sound_until, schedule.plateau_end)
        samples = step * self.batch_size
        content = {"identity": self.identity(schedule.n_steps), "samples_seen": samples, "task": state}

        def write(copied: dict[str, Any]) -> None:
            save_checkpoint(
                self.checkpoints,
                step,
                copied,
                keep=self.n_kept,
                and_until=kept_too,
                length=schedule.n_steps,
                stale=stale,
                verified=self._verified,
            )

        self._background.begin(content, write)
        self._stale = []

    def report(self) -> None:
        """If the last save has ended, learn how.

        Raises:
            StorageError: it failed.
        """
        self._background.settle(wait=False)

    def wait(self) -> None:
        """Return when the last checkpoint is on disk.

        Raises:
            StorageError: it could not be saved.
        """
        self._background.settle(wait=True)

    def _require_finite(self, state: dict[str, Any]) -> None:
        """Save finite states only; all processes decide alike."""
        bad = first_not_finite(state)
        if any(on_every_process(int(bad is not None), self.accelerator)):
            raise DivergedError(f"the weights are no longer finite ({bad or 'on another process'})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        step: optimizer steps done when it was saved.
        state: what was saved.
        skipped: newer folders that failed verification, each with its reason.
        length: steps of the training that saved it; None if an early version did.
    """

    step: int
    state: dict[str, Any]
    skipped: tuple[str, ...] = ()
    length: int | None = None


def save_checkpoint(
    root: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int = _MIN_KEPT,
    and_until: tuple[int, ...] = (),
    length: int | None = None,
    stale: Collection[int] = (),
    verified: Stamps | None = None,
) -> Path:
    """Publish ``root/step-<step>``, then remove all but the newest ``keep`` verified ones, at least two.

    Args:
        root: folder of checkpoints.
        step: optimizer steps done.
        state: what to save.
        keep: how many stay.
        and_until: for each of these steps, the newest checkpoint of that step or before stays too.
        length: steps of the training.
        stale: steps of checkpoints that another length left, and that this training has abandoned: removed.
        verified: what this process verified before, which is not read again while its files are unchanged; extended.

    Raises:
        StorageError: the disk is too full or refused; earlier checkpoints are untouched.
    """
    path, verified = root / f"step-{step:08d}", {} if verified is None else verified
    if path.exists() and (step in stale or _why_broken(path, step) is not None):
        durable.remove_folder(path)
    if not path.exists():
        _publish(path, step, state, length)
    for each, other in _folders(root):
        if each in stale and each != step:
            durable.remove_folder(other)
    verified[path] = _stamps(path)
    _rotate(root, max(keep, _MIN_KEPT), and_until, verified)
    return path


def checkpoint_lengths(root: Path) -> list[tuple[int, int | None]]:
    """(step, steps of the training that saved it) of every checkpoint that verifies, newest first."""
    return [(step, _length(path)) for step, path in _folders(root) if _why_broken(path, step) is None]


def sound_step(root: Path, sound_until: int) -> int | None:
    """The newest step up to ``sound_until`` with a checkpoint that verifies; None without one."""
    steps = (step for step, path in _folders(root) if step <= sound_until and _why_broken(path, step) is None)
    return next(steps, None)


def _publish(path: Path, step: int, state: dict[str, Any], length: int | None) -> None:
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(state))
    durable.require_free_space(path.parent, int(1.1 * size) + 2**20, "a checkpoint")

    def fill(folder: Path) -> None:
        files = save_state(folder, state)
        manifest = {"format": _FORMAT, "step": step, "sha256": files, **({"length": length} if length else {})}
        durable.write_bytes(folder / _MANIFEST, json_text({"manifest": manifest, "sha256": digest(manifest)}))

    def verify(folder: Path) -> None:
        reason = _why_broken(folder, step)
        if reason is not None:
            raise CheckpointError(f"did not survive being written: {reason}", field=str(path), fix="check the disk")

    durable.publish_folder(path, fill, verify)


def latest_checkpoint(
    root: Path, accept: Callable[[int, int | None], bool] = lambda step, length: True
) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None when there is none at all.

    Args:
        root: folder of checkpoints.
        accept: step and length of a checkpoint => whether it may be used.

    Raises:
        CheckpointError: there are some, and none verifies; each is named with its reason.
    """
    skipped: list[str] = []
    for step, path in _folders(root):
        reason = _why_broken(path, step)
        if reason is None:
            if not accept(step, length := _length(path)):
                continue
            try:
                return Checkpoint(step, load_state(path), tuple(skipped), length)
            except CheckpointError as error:  # changed after it was verified
                reason = str(error).replace("\n", ";")
        skipped.append(f"{path.name}: {reason}")
    if skipped:
        raise CheckpointError(
            "no checkpoint can be used",
            field=str(root),
            found="; ".join(skipped),
            fix="restore it from a copy, or move that folder away: this stage then starts from the beginning",
        )
    return None


def _folders(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every published checkpoint, newest first."""
    if not root.is_dir():
        return []
    matches = ((_NAME.fullmatch(each.name), each) for each in root.iterdir() if each.is_dir())
    return sorted(((int(match[1]), each) for match, each in matches if match), reverse=True)


def _length(path: Path) -> int | None:
    """The length that the manifest of a verified checkpoint notes."""
    length: int | None = json.loads((path / _MANIFEST).read_bytes())["manifest"].get("length")
    return length


def _why_broken(path: Path, step: int) -> str | None:
    """None for the complete, undamaged checkpoint of ``step``; else the reason."""
    try:
        saved = json.loads((path / _MANIFEST).read_bytes())
        manifest = saved["manifest"]
        if saved["sha256"] != digest(manifest):
            return f"{_MANIFEST} is damaged"
        if manifest["format"] != _FORMAT:
            return f"it has format {manifest['format']}, not {_FORMAT}"
        if manifest["step"] != step:
            return f"it is the checkpoint of step {manifest['step']}"
        for name in sorted(_FILES):
            if (path / name).is_symlink() or path.is_symlink():
                return f"{name} is a symbolic link"
            if durable.file_sha256(path / name) != manifest["sha256"][name]:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{_MANIFEST} or a file that it names cannot be read: {type(error).__name__}: {error}"
    return None


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    """Inode, size and time of change of the files of a checkpoint; empty if one is missing."""
    try:
        found = [(path / name).stat() for name in (_MANIFEST, *sorted(_FILES))]
    except OSError:
        return []
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def _rotate(root: Path, keep: int, and_until: tuple[int, ...], verified: Stamps) -> None:
    """Remove what is older than ``keep`` verified checkpoints; ``verified`` ones are read again only if they changed.

    For each step in ``and_until`` the newest one of that step or before stays.
    """
    n_whole, wanted = 0, set(and_until)
    for step, path in _folders(root):
        for_these = {until for until in wanted if step <= until}
        stamps = _stamps(path)
        if n_whole >= keep and not for_these:
            durable.remove_folder(path)
            verified.pop(path, None)
        elif (stamps and verified.get(path) == stamps) or _why_broken(path, step) is None:
            verified[path] = stamps
            n_whole, wanted = n_whole + 1, wanted - for_these
