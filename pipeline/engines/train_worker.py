"""A worker of Ray Train: one process of a training, as ``accelerate launch`` would start it."""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.errors import ConfigError, Interrupted, LostProcessError, portable
from pipeline.engines.channel import Kind, Line, Terminal

_SECONDS_TO_APPEAR = 10.0
"""of a new file on another machine: network drives show it late"""


@dataclass(frozen=True)
class ClusterWork:
    """What the workers do together.

    Attributes:
        work: called on each worker, as a process of ``accelerate launch`` would; must be importable there.
        folder: the run folder, from the root, on storage that all workers see.
        batch_size: that the workers share: their number divides it.
        on_gpus: whether each takes a GPU; None where the cluster has some.
        done: names of what is done in the run folder: new ones are progress.
    """

    work: Callable[[], None]
    folder: Path
    batch_size: int
    on_gpus: bool | None
    done: Callable[[], set[str]]


@dataclass(frozen=True)
class Order:
    """What a worker gets."""

    task: ClusterWork
    channel: Any
    attempt: int
    token: str
    variables: dict[str, str] = field(repr=False)  # with credentials
    terminal: Terminal
    folder: str = field(default_factory=lambda: str(Path.cwd()))


def train(given: dict[str, Order]) -> None:
    """The function of a worker: the work, as a process of ``accelerate launch`` does it."""
    order = given["order"]
    os.environ.update(order.variables)
    line = Line(order.channel, int(os.environ["RANK"]), order.attempt)
    line.say_surely("began")
    line.when_stopped(_stop)
    with line.streams(order.terminal):
        try:
            _prepare(order)
            order.task.work()
        except BaseException as error:
            kind: Kind = "lost" if _is_lost(error) else "error"
            line.say_surely(kind, (portable(error), traceback.format_exc()))
            if isinstance(error, Interrupted):
                return  # as on every worker: none is to end before the others have
            raise
    line.say_surely("done")


def _prepare(order: Order) -> None:
    """Make a worker's process like the command's own."""
    import torch

    from foundation.hardware import keep_freed_memory

    logging.getLogger().setLevel(logging.WARNING)  # Ray's workers print what any library notes
    if Path(order.folder).is_dir():
        os.chdir(order.folder)
    _require_shared(order.task.folder, order.token)
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in order.variables:
        torch.set_num_threads(_threads())


def _threads() -> int:
    """Threads of a process on a CPU, as ``accelerate launch`` shares a machine out; one process has torch's default."""
    import psutil

    from foundation.hardware import processes_on_this_machine, usable_cores

    cores = psutil.cpu_count(logical=False) or usable_cores()
    return max(1, min(cores // processes_on_this_machine(), usable_cores()))


def _require_shared(folder: Path, token: str) -> None:
    """Refuse a run folder that is another one on this worker.

    Raises:
        ConfigError: naming the machine.
    """
    until = time.monotonic() + _SECONDS_TO_APPEAR
    while not (folder / token).is_file():
        if time.monotonic() > until:
            what = f"the machine {socket.gethostname()} does not see the folder that the command sees"
            fix = "give an --out on storage that all machines share (NFS, Lustre, EFS ...), or use one machine"
            raise ConfigError(what, field="--out", found=str(folder), fix=fix)
        time.sleep(0.2)


def _stop(number: int) -> None:
    """Stop the training of this worker at its next step; what is between trainings ends at once, as by a signal."""
    from foundation.training.stop_signal import request_stop

    if not request_stop(number):
        os._exit(128 + number)


def _is_lost(error: BaseException) -> bool:
    from foundation.training.heartbeat import is_of_processes

    return isinstance(error, LostProcessError) or is_of_processes(error)
