"""How long a checkpoint holds a training: written in a thread from a copy, beside the loop that writes it itself.

    python scripts/bench_checkpoints.py [--quick] [--gigabytes N] [--saves N] [--folder PATH] [--json FILE]

The state is that of a model with its average and two moments of its optimizer. Between saves the loop multiplies
matrices, as training does. Reference: the save of earlier versions, in the loop: a copy of every tensor, the library's
file, compared with the tensors, hashed, verified after the flush, and the checkpoint before hashed again. Second row:
the same work as ours without a thread, which tells what reading less saves. Third row: what a product takes while the
thread writes, beside the same alone. Fourth row: how long a checkpoint takes until it is on the disk.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from bench_report import Row, bench_parser, compare, report
from safetensors import safe_open
from safetensors.torch import save_file

from foundation.config import digest
from foundation.storage import durable
from foundation.storage.serialization import json_text, split_state
from foundation.training.checkpoints import save_checkpoint
from foundation.training.saving import BackgroundSave, first_not_finite, named_tensors

BETWEEN = 2.0
"""seconds of products between two saves, at least"""
_SIDE, _TENSORS = 1024, 48


def state_of(gigabytes: float) -> dict[str, Any]:
    """Weights, their average and two moments, in ``_TENSORS`` parts each."""
    size = max(1, int(gigabytes * 1e9 / 4 / 4 / _TENSORS))
    names = [f"blocks.{i}.weight" for i in range(_TENSORS)]
    moments = {i: {"exp_avg": torch.rand(size), "exp_avg_sq": torch.rand(size)} for i in range(_TENSORS)}
    return {
        "model": {name: torch.rand(size) for name in names},
        "average": {name: torch.rand(size) for name in names},
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3}]},
    }


def save_as_before(root: Path, step: int, state: dict[str, Any]) -> None:
    """The save of earlier versions, with two checkpoints kept."""
    if not all(bool(torch.isfinite(each).all()) for _, each in named_tensors(state)):
        raise ValueError("not finite")
    tree, tensors = split_state(state)
    tensors = {name: each.clone() for name, each in tensors.items()}
    manifest: dict[str, Any] = {"format": 2, "step": step}

    def fill(folder: Path) -> None:
        durable.write_bytes(folder / "state.json", json_text(tree))
        durable.write_file(folder / "state.safetensors", lambda path: save_file(tensors, path))
        with safe_open(folder / "state.safetensors", framework="pt") as file:
            if not all(torch.equal(file.get_tensor(name), each) for name, each in tensors.items()):
                raise durable.lost(folder)
        manifest["sha256"] = {path.name: durable.file_sha256(path) for path in sorted(folder.iterdir())}
        text = json_text({"manifest": manifest, "sha256": digest(manifest)})
        durable.write_bytes(folder / "MANIFEST.json", text)

    def verify(folder: Path) -> None:
        if any(durable.file_sha256(folder / name) != sha256 for name, sha256 in manifest["sha256"].items()):
            raise durable.lost(folder)

    durable.publish_folder(root / f"step-{step:08d}", fill, verify)
    for old, path in enumerate(sorted(root.glob("step-*"), reverse=True)):
        if old > 1:
            durable.remove_folder(path)
        elif old == 1:
            durable.file_sha256(path / "state.safetensors")


class Training:
    """Products of matrices; counts how long each takes."""

    def __init__(self) -> None:
        self._left, self._right = torch.rand(2, _SIDE, _SIDE)

    def work(self, seconds: float, until: Callable[[], bool] = lambda: True) -> list[float]:
        """Seconds of each product, for ``seconds`` or longer until ``until()``."""
        began, taken = time.perf_counter(), []
        while time.perf_counter() - began < seconds or not until():
            start = time.perf_counter()
            self._left @ self._right
            taken.append(time.perf_counter() - start)
        return taken


@contextmanager
def in_background(root: Path, state: dict[str, Any]) -> Iterator[tuple[Callable[[int], None], BackgroundSave]]:
    """A save as ``CheckpointManager`` does it."""
    background, verified = BackgroundSave(Accelerator(cpu=True)), {}  # type: ignore[var-annotated]

    def save(step: int) -> None:
        background.settle(wait=True)
        if first_not_finite(state) is not None:
            raise ValueError("not finite")
        background.begin(state, lambda copied: void(save_checkpoint(root, step, copied, verified=verified)))

    try:
        yield save, background
    finally:
        background.close()


def void(_: object) -> None:
    """Nothing."""


def held(saves: int, training: Training, save: Callable[[int], None], ended: Callable[[], bool]) -> list[float]:
    """Seconds of each save in the loop, after a first one that is not counted; products in between."""
    seconds = []
    for step in range(1, saves + 2):
        start = time.perf_counter()
        save(step)
        seconds.append(time.perf_counter() - start)
        training.work(BETWEEN, ended)
    return seconds[1:]


def rows_of(gigabytes: float, saves: int, folder: Path) -> list[Row]:
    """All rows."""
    state, training = state_of(gigabytes), Training()
    size = sum(each.numel() * each.element_size() for _, each in named_tensors(state)) / 1e9
    name, config = f"{size:.2g} GB", {"saves": saves, "threads": torch.get_num_threads()}
    alone = statistics.mean(training.work(BETWEEN))
    before = held(saves, training, lambda step: save_as_before(folder / "before", step, state), lambda: True)
    waited = held(saves, training, lambda step: void(save_checkpoint(folder / "waited", step, state)), lambda: True)
    with in_background(folder / "ours", state) as (save, background):

        def ended() -> bool:
            background.settle(wait=False)
            return not background.is_open

        ours = held(saves, training, save, ended)
        start = time.perf_counter()
        save(saves + 2)
        beside = statistics.mean(training.work(0.0, ended))
        until = time.perf_counter() - start
    ours_s, before_s, waited_s = (statistics.median(each) for each in (ours, before, waited))
    reference = "in the loop, read back four times"
    return [
        compare(f"{name}: the loop is held", "s", ours_s, before_s, reference, config=config),
        compare(f"{name}: the loop is held", "s", ours_s, waited_s, "in the loop, read back once", config=config),
        compare(f"{name}: a product meanwhile", "ms", 1e3 * beside, 1e3 * alone, "with no save", config=config),
        compare(f"{name}: until it is on the disk", "s", until, waited_s, "in the loop, alone", config=config),
    ]


def main() -> None:
    """Measure and print the table."""
    parser = bench_parser(__doc__ or "")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the state")
    parser.add_argument("--saves", type=int, default=5, help="counted saves of each kind")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder of the system by default")
    options = parser.parse_args()
    gigabytes, saves = (min(options.gigabytes, 0.05), 2) if options.quick else (options.gigabytes, options.saves)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report(rows_of(gigabytes, saves, Path(folder)), options.json)


if __name__ == "__main__":
    main()
