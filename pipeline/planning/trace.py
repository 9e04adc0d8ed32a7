"""Trace of a piece of work on tensors without memory: which bytes live when, and the work of each operation.

Every new storage is counted from the operation that makes it until the last tensor on it is gone, as torch's allocator
would; what an operation allocates inside itself is not seen. Nothing is computed.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

BACKWARD = "backward pass"
_VALUES = {torch.bool: True, torch.int64: 0, torch.int32: 0}
"""what a step is answered that asks for a value: all is well"""
_ANY = "_of_any"
"""marks the result of a question whether any value is bad"""


class Work(NamedTuple):
    """One operation.

    Attributes:
        flops: of products and convolutions; 0 for the rest.
        n_bytes: read and written.
        kind: of its products: in 16 bits, or in float32 as a convolution or a product of matrices.
    """

    flops: int
    n_bytes: int
    kind: Literal["narrow", "convolution", "product"]


class Trace(TorchDispatchMode):
    """Counts bytes by part while it is active.

    Attributes:
        part: to which new storages belong.
        live: bytes that exist now, by part.
        at_peak: ``live`` when its sum was largest.
        largest: of each part, the most bytes that it held at any time.
        work: every operation in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = "other"
        self.live: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()
        self.work: list[Work] = []
        self._peak = self._now = 0
        self._held: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    @property
    def peak(self) -> int:
        """Bytes when most of them existed."""
        return self._peak

    def restart(self) -> None:
        """Forget past peaks; what exists now still counts."""
        self.largest, self.at_peak, self._peak = Counter(self.live), Counter(self.live), self._now

    @contextlib.contextmanager
    def naming(self, part: str) -> Iterator[None]:
        """New storages belong to this part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def follow(self, module: nn.Module, part: str) -> None:
        """New storages belong to this part in the module's forward pass."""
        stack: list[str] = []

        def enter(*_: Any) -> None:
            stack.append(self.part)
            self.part = part

        def leave(*_: Any) -> None:
            self.part = stack.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)

    def relabel(self, tensor: torch.Tensor, part: str) -> None:
        """The tensor's storage belongs to another part from now on."""
        key = tensor.untyped_storage()._cdata
        held = self._held.get(key)
        if held is not None and held[2] != part:
            reference, n_bytes, before = held
            self._held[key] = reference, n_bytes, part
            self.live[before] -= n_bytes
            self._add(part, n_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation and count it."""
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if hasattr(args[0], _ANY) else _VALUES.get(args[0].dtype, 1.0)
        if func is torch.ops.aten.equal.default:
            return True
        out = func(*args, **kwargs)
        outputs = [each for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
        if func.is_view or not outputs:
            return out
        if func._overloadpacket is torch.ops.aten.any:
            setattr(outputs[0], _ANY, True)
        given = {id(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        for each in outputs:
            if id(each) not in given:
                self._hold(each)
        self._count(func, args, kwargs, out, outputs)
        return out

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._held or not n_bytes:
            return
        backward = torch._C._current_graph_task_id() != -1
        part = BACKWARD if backward else self.part
        self._held[key] = weakref.ref(storage, lambda _: self._release(key)), n_bytes, part
        self._now += n_bytes
        self._add(part, n_bytes)

    def _add(self, part: str, n_bytes: int) -> None:
        self.live[part] += n_bytes
        self.largest[part] = max(self.largest[part], self.live[part])
        if self._now > self._peak:
            self._peak, self.at_peak = self._now, Counter(self.live)

    def _release(self, key: int) -> None:
        _, n_bytes, part = self._held.pop(key)
        self.live[part] -= n_bytes
        self._now -= n_bytes

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, outputs: list[torch.Tensor]) -> None:
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        n_bytes = sum(each.numel() * each.element_size() for each in (*inputs, *outputs))
        formula = flop_registry.get(func._overloadpacket)
        flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
        convolves = "convolution" in func.__name__
        kind = "narrow" if inputs and inputs[0].element_size() < 4 else "convolution" if convolves else "product"
        self.work.append(Work(flops, n_bytes, kind))  # type: ignore[arg-type]
