"""What a mirror costs a training: a checkpoint that is copied to an object store beside the loop, and the same without.

    python scripts/bench_mirror.py [--quick] [--gigabytes N] [--saves N] [--folder PATH] [--address URL] [--json FILE]

State and loop are as in ``bench_checkpoints.py``. Without ``--address`` the store is moto's server in a
process of its own with a lower priority, whose work a real store would do elsewhere. First row: how long a save holds
the loop. Second row: products of the loop in a second while a checkpoint is written and copied. Third row: how long a
checkpoint takes until it is in the mirror, beside until it is on the disk.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench_checkpoints import BETWEEN, Training, in_background, state_of
from bench_report import Row, bench_parser, compare, report

from foundation.storage.remote.mirror import Mirror, Mirrored
from foundation.storage.remote.mirror_index import MirrorStore
from foundation.threads import give_way
from foundation.training.saving import named_tensors
from pipeline.runs.mirror import choose, is_left_out

_READY_S = 60.0


@contextlib.contextmanager
def local_store() -> Iterator[str]:
    """The address of a mirror in a server that runs here."""
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(line, **quiet, preexec_fn=lambda: void(os.nice(10)))
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    try:
        began = time.monotonic()
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() - began > _READY_S:
                    raise
                time.sleep(0.1)
        s3fs.S3FileSystem().mkdir("s3://bench")
        yield "s3://bench/run"
    finally:
        server.terminate()
        server.wait()


def void(_: object) -> None:
    """Nothing."""


class Measured:
    """Saves of one kind.

    Attributes:
        held: seconds that each save held the loop.
        products: seconds of each product until the checkpoint was where it goes.
        until: seconds until then.
    """

    def __init__(self) -> None:
        self.held: list[float] = []
        self.products: list[float] = []
        self.until: list[float] = []

    def save(self, save: Callable[[], None], training: Training, is_there: Callable[[], bool]) -> None:
        """Save once; products until it is there."""
        start = time.perf_counter()
        save()
        self.held.append(time.perf_counter() - start)
        self.products += training.work(0.0, is_there)
        self.until.append(time.perf_counter() - start)
        training.work(BETWEEN)


def measure(saves: int, state: dict[str, Any], folder: Path, store: MirrorStore | None) -> Measured:
    """Save and copy; the first save is not counted."""
    measured, training, checkpoints = Measured(), Training(), folder / "checkpoints" / "prior"
    checkpoints.mkdir(parents=True)
    mirror = None if store is None else Mirror(store, Mirrored(folder, is_left_out, choose, give_way))
    with in_background(checkpoints, state) as (save, background):
        if mirror is not None:
            mirror.start()
        for step in range(1, saves + 2):

            def is_there(step: int = step) -> bool:
                background.settle(wait=False)
                if store is None or store.index is None:
                    return not background.is_open
                return f"checkpoints/prior/step-{step:08d}/MANIFEST.json" in store.index.files

            counted = measured if step > 1 else Measured()
            counted.save(lambda step=step: save(step), training, is_there)  # type: ignore[misc]
    if mirror is not None:
        mirror.stop()
    return measured


def rows_of(gigabytes: float, saves: int, folder: Path, address: str) -> list[Row]:
    """All rows."""
    state = state_of(gigabytes)
    size = sum(each.numel() * each.element_size() for _, each in named_tensors(state)) / 1e9
    store = MirrorStore(address)
    store.index = store.read()
    store.claim("bench", "bench")
    alone = measure(saves, state, folder / "alone", None)
    ours = measure(saves, state, folder / "mirrored", store)
    idle = 1 / statistics.mean(Training().work(BETWEEN))
    name, config = f"{size:.2g} GB", {"saves": saves, "threads": torch.get_num_threads()}
    rate, rate_alone = (1 / statistics.mean(each.products) for each in (ours, alone))
    held, held_alone = (statistics.median(each.held) for each in (ours, alone))
    until, on_disk = (statistics.median(each.until) for each in (ours, alone))
    more = {"more_is_better": True, "floor": idle, "config": config}
    return [
        compare(f"{name}: the loop is held", "s", held, held_alone, "without a mirror", config=config),
        compare(
            f"{name}: products meanwhile", "1/s", rate, rate_alone, "while it is written, without a mirror", **more
        ),
        compare(f"{name}: products meanwhile", "1/s", rate, idle, "with no save", **more),
        compare(f"{name}: until it is in the mirror", "s", until, on_disk, "on the disk, without one", config=config),
    ]


def main() -> None:
    """Measure and print the table."""
    parser = bench_parser(__doc__ or "")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the state")
    parser.add_argument("--saves", type=int, default=5, help="counted saves of each kind")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder of the system by default")
    parser.add_argument("--address", help="of an empty place in a store; a server of this machine by default")
    options = parser.parse_args()
    gigabytes, saves = (min(options.gigabytes, 0.05), 2) if options.quick else (options.gigabytes, options.saves)
    place = local_store() if options.address is None else contextlib.nullcontext(options.address)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, place as address:
        report(rows_of(gigabytes, saves, Path(folder), address), options.json)


if __name__ == "__main__":
    main()
