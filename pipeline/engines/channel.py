"""Between the command and its workers on a cluster: what they print and how they end, and the signal to stop.

One actor on the command's node passes messages on. The worker's standard streams lead to it, so that the terminal shows
what it would show of a local process, progress bars included.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from foundation.errors import ConfigError
from pipeline.engines.ray_cluster import ray_module

Kind = Literal["began", "out", "err", "done", "error", "lost"]


@dataclass(frozen=True)
class Message:
    """What a worker says.

    Attributes:
        rank: of the worker.
        attempt: of the command to start workers.
        kind: began; text for the standard output or for the standard error; or how it ended: its work is done, it
            raised an error, or it lost another worker.
        content: the text, or (error, traceback).
    """

    rank: int
    attempt: int
    kind: Kind
    content: Any = None


class Switch:
    """The actor's state."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._news, self._stop, self._number = asyncio.Event(), asyncio.Event(), 0

    async def is_open(self) -> bool:
        """True."""
        return True

    async def say(self, messages: list[Message]) -> None:
        """Keep messages of a worker."""
        self._messages += messages
        self._news.set()

    async def listen(self, seconds: float) -> list[Message]:
        """The messages since the last call, at the latest after some seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
        heard, self._messages = self._messages, []
        self._news.clear()
        return heard

    async def stop(self, number: int) -> None:
        """Tell all workers that the command got a signal."""
        self._number = number
        self._stop.set()

    async def stopped_by(self) -> int:
        """The number of the signal, once there is one."""
        await self._stop.wait()
        return self._number


def open_channel() -> Any:
    """A channel on this process's node; it takes no core.

    Raises:
        ConfigError: the cluster cannot run this package.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = ray_module()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel = ray.remote(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)(Switch).remote()
    try:
        ray.get(channel.is_open.remote())
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        what = f"the cluster's machines cannot run this version of Tessera: {reason}"
        fix = "install the same tessera-images[ray] on each of them, and start their Ray from that environment"
        raise ConfigError(what, field="--engine", found="ray", fix=fix) from error
    return channel


@dataclass(frozen=True)
class Terminal:
    """What the command's streams are, for the workers' streams to be the same.

    Attributes:
        is_terminal: of the standard output and the standard error.
        size: columns and rows.
    """

    is_terminal: tuple[bool, bool]
    size: tuple[int, int]

    @classmethod
    def here(cls) -> Terminal:
        """This process's."""
        size = shutil.get_terminal_size()
        return cls((sys.stdout.isatty(), sys.stderr.isatty()), (size.columns, size.lines))


@dataclass(frozen=True)
class Line:
    """A worker's end of the channel."""

    channel: Any
    rank: int
    attempt: int

    def say(self, kind: Kind, content: Any = None) -> Any:
        """Send a message; the returned reference is ready when it has arrived."""
        return self.channel.say.remote([Message(self.rank, self.attempt, kind, content)])

    def say_surely(self, kind: Kind, content: Any = None) -> None:
        """Return when the message has arrived, or the command is gone."""
        ray = ray_module()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.say(kind, content))

    @contextlib.contextmanager
    def streams(self, terminal: Terminal) -> Iterator[None]:
        """Send what is printed in here."""
        if any(terminal.is_terminal):
            os.environ["COLUMNS"], os.environ["LINES"] = (str(each) for each in terminal.size)
        before = sys.stdout, sys.stderr
        sys.stdout = _Stream(self, "out", terminal.is_terminal[0])
        sys.stderr = _Stream(self, "err", terminal.is_terminal[1])
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before

    def when_stopped(self, act: Callable[[int], None]) -> None:
        """Have ``act`` called with the number of the signal that the command gets, in a thread."""
        ray = ray_module()

        def wait() -> None:
            with contextlib.suppress(ray.exceptions.RayError):
                act(ray.get(self.channel.stopped_by.remote()))

        threading.Thread(target=wait, name="stop", daemon=True).start()


class _Stream(io.TextIOBase):
    """A text stream into the channel, line by line or as flushed; of a forked process into the worker's log."""

    encoding = "utf-8"

    def __init__(self, line: Line, kind: Kind, is_terminal: bool) -> None:
        self._line, self._kind, self._is_terminal = line, kind, is_terminal
        self._text, self._lock, self._process = "", threading.RLock(), os.getpid()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        if os.getpid() != self._process:  # Ray cannot be used there
            return os.write(2, text.encode(errors="backslashreplace"))
        with self._lock:
            self._text += text
            if "\n" in text or "\r" in text:
                self.flush()
        return len(text)

    def flush(self) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            text, self._text = self._text, ""
            if text:
                self._line.say(self._kind, text)
