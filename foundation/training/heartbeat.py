"""Signs of life of processes: a dead one is named within minutes, and a long wait for one that works is no failure.

Each process renews a key in the store through which they found each other. Waits for single-process work (an
evaluation, a checkpoint, an index) last as long as the others' keys are renewed; collective operations within a step
have a time limit, ``TESSERA_PROCESS_TIMEOUT``. A wait of more than ``SAY_SECONDS`` says for whom.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from foundation.config import environment_seconds
from foundation.errors import LostProcessError

if TYPE_CHECKING:
    from accelerate import Accelerator

VARIABLE = "TESSERA_PROCESS_TIMEOUT"
"""environment variable: seconds after which a silent process counts as dead"""
SAY_SECONDS = 30.0
"""after which a wait says what it waits for, and again each time it has doubled"""
_DEFAULT = 600.0
_INTERVAL = 10.0
_FIX = "see that process's own messages; run the same command again, which continues from the last checkpoint"
_ENDED = b"ended|as it ended"
_beating: dict[int, Heartbeat] = {}
"""the one of this process, by the identity of the process group"""


def process_timeout() -> timedelta:
    """How long a collective operation may take, and a process be silent.

    Raises:
        ConfigError: ``TESSERA_PROCESS_TIMEOUT`` is no positive number.
    """
    return timedelta(seconds=environment_seconds(VARIABLE, _DEFAULT))


class Heartbeat:
    """This process's sign of life, and what it knows of the others'.

    Args:
        store: of the process group.
        rank: of this process.
        n_processes: of the group.
        timeout: seconds of silence after which a process counts as dead.
    """

    def __init__(self, store: Any, rank: int, n_processes: int, timeout: float) -> None:
        self.rank, self.n_processes, self.timeout = rank, n_processes, timeout
        self.interval = min(_INTERVAL, timeout / 6)
        self.doing = "at the start"
        self._store, self._own = store, store.clone()  # a client that waits blocks its other calls
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._n_waits, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Say that this process ends, and be silent from now on."""
        self._over.set()
        self._thread.join(timeout=2.0)
        with contextlib.suppress(RuntimeError):
            self._own.set(f"heartbeat/{self.rank}", _ENDED.decode())

    def _beat(self) -> None:
        """Renew this process's key; say on stderr who is silent: NCCL ends a process without an error to catch."""
        n, others, seen, said = 0, self._others, dict[int, tuple[bytes, float]](), set[int]()
        with contextlib.suppress(RuntimeError):  # the store is gone: its process has ended, the others will notice
            while not self._over.is_set():
                self._own.set(f"heartbeat/{self.rank}", f"{n}|{self.doing}")
                n += 1
                for rank in set(_silent(self._own, others, min(SAY_SECONDS, self.timeout / 2), seen)) - said:
                    said.add(rank)
                    if seen[rank][0] == _ENDED:
                        continue  # the others need not wait for it
                    last = _place(seen[rank][0])
                    print(f"process {rank} is silent, last heard {last}; here {self.doing}", file=sys.stderr)
                self._over.wait(self.interval)

    @property
    def _others(self) -> list[int]:
        return [each for each in range(self.n_processes) if each != self.rank]

    def wait_for_everyone(self, at: str | None = None) -> None:
        """Return once every process has called this equally often, however long living ones take.

        Args:
            at: a name; then once every process has called this with that name.

        Raises:
            LostProcessError: a process that has not called it is silent.
        """
        name = f"everyone/{self._n_waits if at is None else at}"
        self._n_waits += at is None
        try:
            self._store.set(f"{name}/{self.rank}", "")
            if self._store.add(name, 1) == self.n_processes:
                self._store.set(f"{name}/all", "")
            self._seen.clear()
            began, say_at = time.monotonic(), SAY_SECONDS
            while not self._arrived(f"{name}/all"):
                missing = [each for each in range(self.n_processes) if not self._store.check([f"{name}/{each}"])]
                self._require_alive(missing)
                if (waited := time.monotonic() - began) >= say_at:
                    say_at *= 2
                    self._say_wait(missing, waited)
        except RuntimeError as error:  # torch's errors of a store whose process has ended
            raise self._dead([0], f"the store of process 0 does not answer: {error}") from error

    def _say_wait(self, missing: list[int], seconds: float) -> None:
        """Say on stderr for whom processes wait; one of them says so."""
        if self.rank != min(set(range(self.n_processes)) - set(missing), default=self.rank) or not missing:
            return
        shown = [f"process {each} ({_place(self._seen[each][0])})" for each in missing[:3] if each in self._seen]
        more = f" and {len(missing) - len(shown)} more" if len(missing) > len(shown) else ""
        text = f"waiting for {seconds:.0f} s for {', '.join(shown)}{more}; here {self.doing}"
        print(f"{text}. The wait ends when they are silent for {self.timeout:g} s ({VARIABLE})", file=sys.stderr)

    def _arrived(self, key: str) -> bool:
        try:
            self._store.wait([key], timedelta(seconds=self.interval / 2))
        except RuntimeError:  # not yet, or the store has gone, which the next call says
            return bool(self._store.check([key]))
        return True

    def _require_alive(self, ranks: list[int]) -> None:
        silent = _silent(self._store, ranks, self.timeout, self._seen)
        if silent:
            raise self._dead(silent, f"silent for {self.timeout:g} seconds")

    def _dead(self, ranks: list[int], found: str) -> LostProcessError:
        last = [_place(self._seen[each][0]) for each in ranks if each in self._seen]
        where = f", last heard {' and '.join(last)}" if last else ""
        names = " and ".join(f"process {each}" for each in ranks)
        what = f"{names} ended or hangs{where}; this is process {self.rank}, {self.doing}"
        return LostProcessError(what, field=f"{self.n_processes} processes", found=found, fix=_FIX)

    def explain(self, error: RuntimeError) -> LostProcessError | None:
        """Which process's end made a collective operation fail; None if all live.

        Watches the others for a few intervals.
        """
        others, few = self._others, 2.5 * self.interval
        reason = str(error).strip().splitlines()[0]
        self._seen.clear()
        until = time.monotonic() + 2 * few
        try:
            while time.monotonic() < until:
                if silent := _silent(self._store, others, few, self._seen):
                    return self._dead(silent, reason)
                time.sleep(self.interval / 4)
        except RuntimeError:
            return self._dead([0], reason)
        return None


def _silent(store: Any, ranks: list[int], longer_than: float, seen: dict[int, tuple[bytes, float]]) -> list[int]:
    """Which of these processes have ended, or not renewed their key for so many seconds of watching.

    Args:
        store: of the process group.
        ranks: of the processes.
        longer_than: seconds.
        seen: rank => value of the key, and when it was first seen; brought up to date.
    """
    found, now = [], time.monotonic()
    for rank in ranks:
        key = f"heartbeat/{rank}"
        value = store.get(key) if store.check([key]) else b""
        if rank not in seen or seen[rank][0] != value:
            seen[rank] = value, now
        if value == _ENDED or now - seen[rank][1] > longer_than:
            found.append(rank)
    return found


def _place(value: bytes) -> str:
    """What a process was doing, from its key."""
    return value.decode().partition("|")[2] or "never"


def heartbeat(accelerator: Accelerator) -> Heartbeat | None:
    """This process's, which begins with the first call; None for one process."""
    from torch import distributed

    if accelerator.num_processes == 1 or not distributed.is_initialized():
        return None
    from torch.distributed.distributed_c10d import _get_default_group, _get_default_store

    key = id(_get_default_group())
    if key not in _beating:
        for old in _beating.values():
            old.stop()
        _beating.clear()
        rank, n_processes = accelerator.process_index, accelerator.num_processes
        _beating[key] = Heartbeat(_get_default_store(), rank, n_processes, process_timeout().total_seconds())
    return _beating[key]


def doing(accelerator: Accelerator, what: str) -> None:
    """Note what this process does from now on, for those that wait for it."""
    if (own := heartbeat(accelerator)) is not None:
        own.doing = what


def wait_for_everyone(accelerator: Accelerator, at: str | None = None) -> None:
    """Every process calls it and returns once all have, however long one of them works before.

    Args:
        accelerator: devices and processes.
        at: the name of a place that processes come to once, from wherever an error has found them; None counts calls.

    Raises:
        LostProcessError: one of them has ended or hangs; see ``Heartbeat``.
    """
    if (own := heartbeat(accelerator)) is not None:
        own.wait_for_everyone(at)


@contextlib.contextmanager
def naming_the_dead(accelerator: Accelerator) -> Iterator[Heartbeat | None]:
    """Collective operations in here that fail because another process has ended say which one.

    Raises:
        LostProcessError: naming the process and what it last did.
    """
    own = heartbeat(accelerator)
    try:
        yield own
    except RuntimeError as error:
        told = own.explain(error) if own is not None and is_of_processes(error) else None
        if told is None:
            raise
        raise told from error


def is_of_processes(error: BaseException) -> bool:
    """Whether a collective operation failed: gloo's errors have no type of their own."""
    from torch import distributed

    of_gloo = isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    return isinstance(error, distributed.DistError) or of_gloo
