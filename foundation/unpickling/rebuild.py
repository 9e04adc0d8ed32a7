"""The few calls in a pickle that are answered, by functions of ours: tensors, ordered dictionaries, sets and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foundation.errors import CheckpointError
from foundation.unpickling.inert import Name
from foundation.unpickling.lazy_tensor import LazyTensor, Storage
from foundation.unpickling.safe_unpickle import sound_key

Arguments = tuple[Any, ...]


class Rebuilder:
    """Answers calls by name; ``NotImplemented`` for those that it does not know or whose arguments do not fit.

    Args:
        tensor_bytes: limit of all tensors together; they may share storages, but not without end.
        stored_bytes: what bytes inside a pickle stand for that are a file of their own (torch saves a storage so when a
            module is pickled plainly), or None if that is not allowed here.
    """

    def __init__(self, tensor_bytes: int, stored_bytes: Callable[[bytes], Any] | None = None) -> None:
        self._limit, self._declared, self._stored_bytes = tensor_bytes, 0, stored_bytes
        self._answers: dict[str, Callable[[Arguments], Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._tensor._rebuild_from_type_v2": self._subclass,
            "torch.storage._load_from_bytes": self._stored,
            "collections.OrderedDict": _mapping,
            "__builtin__.set": _set,
            "builtins.set": _set,
            "_codecs.encode": _encoded,
        }

    def __call__(self, name: Name, arguments: Arguments) -> Any:
        """What calling ``name`` would give.

        Raises:
            CheckpointError: a tensor that cannot be, or tensors far larger than the file.
        """
        answer = self._answers.get(name.path)
        return NotImplemented if answer is None else answer(arguments)

    def _tensor(self, arguments: Arguments) -> Any:
        storage, offset, size, stride = arguments[:4] if len(arguments) >= 4 else (None,) * 4
        if not isinstance(storage, Storage):
            raise CheckpointError("holds a damaged tensor", found="a tensor without a storage")
        tensor = storage.view(offset, size, stride)
        self._declared += tensor.n_bytes
        if self._declared > self._limit:
            raise CheckpointError("declares tensors far larger than the file", found=f"{self._declared:,} bytes",
                                  expected=f"at most {self._limit:,}")  # fmt: skip
        return tensor

    def _subclass(self, arguments: Arguments) -> Any:
        fits = len(arguments) >= 3 and isinstance(arguments[0], Name) and isinstance(arguments[2], tuple)
        nested = fits and arguments[0].path == "torch._tensor._rebuild_from_type_v2"
        return self(arguments[0], arguments[2]) if fits and not nested else NotImplemented

    def _stored(self, arguments: Arguments) -> Any:
        data = arguments[0] if len(arguments) == 1 else None
        if self._stored_bytes is None or not isinstance(data, (bytes, str)):
            return NotImplemented
        return self._stored_bytes(data.encode("latin-1") if isinstance(data, str) else data)


def _parameter(arguments: Arguments) -> Any:
    return arguments[0] if arguments and isinstance(arguments[0], LazyTensor) else NotImplemented


def _mapping(arguments: Arguments) -> Any:
    if not arguments:
        return {}
    pairs: Any = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else [()]
    if not all(isinstance(each, (list, tuple)) and len(each) == 2 for each in pairs):
        return NotImplemented
    return {sound_key(key): value for key, value in pairs}


def _set(arguments: Arguments) -> Any:
    sound = len(arguments) == 1 and isinstance(arguments[0], list)
    return {sound_key(each) for each in arguments[0]} if sound else NotImplemented


def _encoded(arguments: Arguments) -> Any:
    sound = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] in ("latin1", "latin-1")
    return arguments[0].encode("latin-1") if sound else NotImplemented
