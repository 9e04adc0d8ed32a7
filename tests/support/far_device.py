"""A device in name only: it refuses what a GPU would refuse, and counts what a GPU would wait for.

Its tensors lie in the CPU's memory, but an operation on tensors of both devices raises, as on a GPU. Each line of the
project where the CPU would wait for the device is counted: it reads a value, moves a tensor across, or needs a result
whose shape depends on values. A tensor that is sent with ``non_blocking`` is counted apart. With
``TESSERA_TEST_FAR_DEVICE=mps`` it has no float64, as Apple's GPUs have none.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import foundation

aten = torch.ops.aten
CROSSINGS = (aten.copy_.default, aten._to_copy.default)
READS = {  # the CPU must know a value, or the shape of the result
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "_assert_scalar"),
    *("nonzero", "masked_select", "bincount", "one_hot", "histc"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("multinomial", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"),
}
"""names of operations; those of linear algebra read whether they succeeded"""
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
MADE_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
SOURCE = Path(foundation.__file__).parents[1]
HAS_FLOAT64 = os.environ.get("TESSERA_TEST_FAR_DEVICE") != "mps"


class _Module(_DummyBackendModule):
    """What torch wants to know of a device."""

    def is_available(self) -> bool:
        """Only inside ``far_device``, where tensors of it can be made."""
        return _Dispatch.n_active > 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        """Random numbers come from the CPU's generator."""

    def synchronize(self, device: object = None) -> None:
        """Nothing is queued."""


class Waits(Counter[str]):
    """How often each line waits.

    Attributes:
        sent: how often each line sends a tensor without waiting.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def clear(self) -> None:
        super().clear()
        self.sent.clear()


_setup_privateuseone_for_python_backend("far", backend_module=_Module())
FAR = torch.device("far:0")


class FarTensor(torch.Tensor):
    """``near`` as seen from outside: on the far device."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> FarTensor:
        if not HAS_FLOAT64 and near.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"the device has no {near.dtype}")
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )
        tensor.near = near
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FarTensor({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    n_active = 0
    waits = Waits()
    """of the process: backward passes run in threads where no mode is active"""

    def __enter__(self) -> Any:
        _Dispatch.n_active += 1
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        _Dispatch.n_active -= 1
        super().__exit__(*exc)

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Makers(TorchFunctionMode):
    """Tensors of Python's numbers are made on the CPU and then sent, and sent back to become numbers."""

    def __torch_function__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist and isinstance(args[0], FarTensor):
            return args[0].cpu().tolist()
        if func in MADE_FROM_NUMBERS:
            source = args[0] if func is torch.Tensor.new_tensor else None
            device = kwargs.pop("device", None) or (None if source is None else source.device)
            if device is not None and torch.device(device).type == FAR.type:
                dtype = {"dtype": kwargs.pop("dtype", None) or (None if source is None else source.dtype)}
                return torch.as_tensor(args[0 if source is None else 1], **dtype).to(device)
            kwargs["device"] = device
        return func(*args, **kwargs)


@contextmanager
def far_device() -> Iterator[Waits]:
    """Inside, tensors can be made on and moved to ``FAR``."""
    _Dispatch.waits = Waits()
    with _Dispatch(), _Makers():
        yield _Dispatch.waits


def _compute(func: Any, args: tuple, kwargs: dict) -> Any:
    """Compute one operation on the CPU; refuse one that reads from both devices."""
    tensors: list[torch.Tensor] = []
    near_args, near_kwargs = _mapped(lambda each: tensors.append(each) or _near(each), (args, kwargs))
    far = [each for each in tensors if isinstance(each, FarTensor)]
    _refuse_both(func, tensors, far)
    device = kwargs.get("device")
    to_far = bool(far) if device is None else torch.device(device).type == FAR.type
    if func is aten.copy_.default:
        to_far = isinstance(args[0], FarTensor)
    from_far = isinstance(args[1] if func is aten.copy_.default else args[0] if args else None, FarTensor)
    if func in CROSSINGS and from_far != to_far:
        counts = _Dispatch.waits.sent if to_far and _at_leisure(func, args, kwargs) else _Dispatch.waits
        counts[_asked_by()] += 1
    elif far and _reads(func, args, kwargs):
        _Dispatch.waits[_asked_by()] += 1
    if device is not None and torch.device(device).type == FAR.type:
        near_kwargs["device"] = torch.device("cpu")
    known = {id(each.near): each for each in far}
    with torch.inference_mode(False), torch._C._AutoDispatchBelowAutograd():
        found = func(*near_args, **near_kwargs)
        if not to_far:
            return _mapped(lambda each: each.clone() if id(each) in known else each, found)
        return _mapped(lambda each: known[id(each)] if id(each) in known else FarTensor(each), found)


def _refuse_both(func: Any, tensors: list[torch.Tensor], far: list[FarTensor]) -> None:
    """Scalars and indices may come from the CPU; other tensors may not."""
    near = [each for each in tensors if not isinstance(each, FarTensor) and each.ndim > 0]
    if far and near and func not in (*CROSSINGS, *INDEXING):
        shapes = [(tuple(each.shape), each.device.type) for each in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {shapes}")


def _at_leisure(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether a copy is asked for without waiting."""
    position = 2 if func is aten.copy_.default else len(args)
    return bool(args[position] if len(args) > position else kwargs.get("non_blocking"))


def _reads(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether the CPU must know values of a far tensor."""
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func in INDEXING:
        return _reads_index(args[1]) and not _is_masked_fill(func, args)
    return func.name().removeprefix("aten::").split(".")[0] in READS


def _is_masked_fill(func: Any, args: tuple) -> bool:
    """One number for all places of a mask needs no count of them."""
    masks = [each for each in args[1] if each is not None]
    one = func is not aten.index.Tensor and args[2].numel() == 1 and not isinstance(args[2], FarTensor)
    return one and all(isinstance(each, FarTensor) and each.dtype == torch.bool for each in masks)


def _reads_index(indices: list[torch.Tensor | None]) -> bool:
    """An index on the CPU is sent; a mask has first to be counted."""
    return any(each is not None and (not isinstance(each, FarTensor) or each.dtype == torch.bool) for each in indices)


def _mapped(change: Callable[[torch.Tensor], Any], each: Any) -> Any:
    """``each`` with its tensors changed; lists, tuples and dictionaries may hold them."""
    if isinstance(each, torch.Tensor):
        return change(each)
    if isinstance(each, (list, tuple)):
        return type(each)([_mapped(change, one) for one in each])
    if isinstance(each, dict):
        return {name: _mapped(change, one) for name, one in each.items()}
    return each


def _near(each: torch.Tensor) -> torch.Tensor:
    return each.near if isinstance(each, FarTensor) else each


def _asked_by() -> str:
    """The innermost line of the project, without the tests."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(SOURCE) and "tests" not in path.parts and ".venv" not in path.parts:
            return f"{path.relative_to(SOURCE)}: {frame.line}"
    return "a test"
