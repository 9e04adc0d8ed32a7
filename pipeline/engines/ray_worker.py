"""One step of a stream in an actor of Ray Data, and batches as rows of Arrow tables."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from foundation.errors import EngineError, TesseraError, one_line
from foundation.threads import prepare_openmp
from pipeline.engines.stream import Step

_SCHEMA = pa.schema([("number", pa.int64()), ("refused", pa.bool_()), ("content", pa.large_binary())])


def packed(number: int, content: Any, *, refused: bool = False) -> pa.Table:
    """A batch as a table of one row."""
    row = {"number": [number], "refused": [refused], "content": [pickle.dumps(content, protocol=5)]}
    return pa.table(row, schema=_SCHEMA)


def unpacked(table: pa.Table) -> tuple[int, Any, bool]:
    """Number and content of a table of one row, and whether the content is the error of a step that refused it."""
    content = pickle.loads(memoryview(table["content"][0].as_buffer()))
    return table["number"][0].as_py(), content, table["refused"][0].as_py()


def ship(step: Callable[[], Step]) -> bytes:
    """Put what opens a step into the cluster's memory, where each machine fetches it once; what ``StepActor`` takes."""
    import ray

    return ray.cloudpickle.dumps(ray.put(step))  # type: ignore[no-any-return]  # as a value: Ray warns of references


class StepActor:
    """Opens a step once, and does it for each batch. What it raises travels on as the batch's result.

    Args:
        step: what ``ship`` returned.
        threads: that torch computes with: as many as in the process that started the work, since sums depend on it.
    """

    def __init__(self, step: bytes, threads: int) -> None:
        prepare_openmp()  # before the step brings torch
        import ray

        self._error: Exception | None = None
        try:
            open_step: Callable[[], Step] = ray.get(ray.cloudpickle.loads(step))
            import torch

            torch.set_num_threads(threads)
            self._do = open_step()
        except Exception as error:
            self._error = _sendable(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row => one row."""
        number, content, refused = unpacked(table)
        if refused:
            return table
        if self._error is not None:
            return packed(number, self._error, refused=True)
        try:
            return packed(number, self._do(content))
        except Exception as error:
            return packed(number, _sendable(error), refused=True)


def _sendable(error: Exception) -> Exception:
    """An exception that arrives in another process as it was; one that cannot be pickled, as its message."""
    if not isinstance(error, TesseraError):
        error.add_note(f"in a worker of Ray:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of other packages
        return EngineError(f"a worker failed with {type(error).__name__}: {one_line(error)}")
    return error


class ReadActor(StepActor):
    """Does ``read``; the name is what Ray and ``ps`` show."""


class ComputeActor(StepActor):
    """Does ``compute``."""


class FinishActor(StepActor):
    """Does ``finish``."""


ACTORS = {"read": ReadActor, "compute": ComputeActor, "finish": FinishActor}
