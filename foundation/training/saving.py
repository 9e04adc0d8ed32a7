"""Saving beside training: a snapshot in the host's memory that a thread writes, with errors that every process learns.

The loop waits for the copy only. Snapshot first, write later: Mohan et al. 2021, CheckFreq (FAST '21).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from foundation.errors import StorageError
from foundation.threads import give_way
from foundation.training.parallel import on_every_process

if TYPE_CHECKING:
    from accelerate import Accelerator

_RUNNING, _DONE, _FAILED = 0, 1, 2


class Snapshot:
    """A copy of a nested state in the host's memory.

    The memory is taken at the first copy and used again by the next, so that there is one copy at a time. Copies from a
    GPU go to pinned memory behind the work that its stream has been given: ``take`` returns at once, later changes of
    the tensors come after the copy, and ``wait`` returns when it is complete.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._copied: list[torch.cuda.Event] = []

    def take(self, state: Any) -> Any:
        """The state with every tensor copied; its containers are new, sequences become lists."""
        before, self._buffers = self._buffers, {}
        copied = self._copy(state, "", before)
        devices = {each.device for _, each in named_tensors(state) if each.is_cuda}
        self._copied = [torch.cuda.current_stream(each).record_event() for each in devices]
        return copied

    def wait(self) -> None:
        """Return when the copy is complete."""
        for each in self._copied:
            each.synchronize()

    def _copy(self, state: Any, name: str, before: dict[str, torch.Tensor]) -> Any:
        if isinstance(state, torch.Tensor):
            tensor, buffer = state.detach(), before.pop(name, None)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer.copy_(tensor, non_blocking=tensor.is_cuda)
            return buffer
        if isinstance(state, dict):
            return {key: self._copy(value, f"{name}/{key}", before) for key, value in state.items()}
        if isinstance(state, (list, tuple)):
            return [self._copy(value, f"{name}/{i}", before) for i, value in enumerate(state)]
        return state


class BackgroundSave:
    """One save at a time, in a thread of process 0; no process communicates in the thread.

    Every process calls every method but ``close`` at the same points of its work.

    Attributes:
        is_open: whether a save was begun of which processes do not know yet how it ended.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator, self._snapshot = accelerator, Snapshot()
        self._thread: ThreadPoolExecutor | None = None
        self._future: Future[None] | None = None
        self.is_open = False

    def begin(self, state: Any, write: Callable[[Any], None]) -> None:
        """Copy ``state`` and have ``write`` called with the copy; the save before has been settled."""
        self.is_open = True
        if not self._accelerator.is_main_process:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint", give_way)
        copied = self._snapshot.take(state)
        self._future = self._thread.submit(self._write, copied, write)

    def settle(self, *, wait: bool) -> None:
        """Have every process learn how the last save ended; without ``wait``, only if it has ended.

        Raises:
            StorageError: it failed. Process 0 raises what its thread raised.
        """
        if not self.is_open:
            return
        future, status = self._future, _RUNNING
        if future is not None and (wait or future.done()):
            status = _DONE if future.exception() is None else _FAILED
        status = max(on_every_process(status, self._accelerator))
        if status == _RUNNING:
            return
        self.is_open, self._future = False, None
        try:
            if future is not None:
                future.result()
            elif status == _FAILED:
                what, fix = "process 0 could not save a checkpoint", "see its message"
                raise StorageError(what, field="checkpoints", fix=fix)
        finally:
            del future  # whose error refers to this frame, and so to all that the callers hold

    def close(self) -> BaseException | None:
        """Wait for the thread and end it; returns the error of a save that was not settled. Communicates with none."""
        future, self._future, self.is_open = self._future, None, False
        error = None if future is None else future.exception()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        return error

    def _write(self, copied: Any, write: Callable[[Any], None]) -> None:
        self._snapshot.wait()
        write(copied)


def first_not_finite(state: Any) -> str | None:
    """The path of a tensor with NaN or infinity in a nested state, None without one.

    Each tensor is read once where it is; each device is asked once.
    """
    finite: dict[torch.device, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, each in named_tensors(state):
        if each.is_floating_point() and each.numel() > 0:
            low, high = torch.aminmax(each.detach())  # both are NaN if any number is
            finite[each.device][name] = torch.isfinite(low) & torch.isfinite(high)
    for found in finite.values():
        all_finite = torch.stack(list(found.values())).tolist()
        if False in all_finite:
            return list(found)[all_finite.index(False)]
    return None


def named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of every tensor in a nested state."""
    if isinstance(state, torch.Tensor):
        yield name, state
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    for key, value in pairs:
        yield from named_tensors(value, f"{name}/{key}" if name else str(key))
