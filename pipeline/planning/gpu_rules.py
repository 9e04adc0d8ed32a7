"""A GPU's choices of types and kernels for tensors on the meta device, which has no autocast and no kernels of its own.

Within ``as_on_gpu`` meta tensors go through a model as CUDA tensors would: autocast casts what torch's lists say
(https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-autocast-to-float32), attention keeps no scores (Rabe and
Staats 2021, arXiv:2112.05682), and dropout keeps one byte a value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_META = "meta"
_NARROW = {
    *(torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, F.linear),
    *(torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.matmul, torch.einsum, F.scaled_dot_product_attention),
    *(torch.Tensor.__matmul__, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm),
}
"""products and convolutions: in autocast's type"""
_WIDE = {
    *(F.group_norm, F.layer_norm, F.softmax, F.log_softmax, F.mse_loss, F.l1_loss, F.cross_entropy, F.softplus),
    *(torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.pow, torch.rsqrt, torch.cumsum, torch.cdist),
    *(torch.sum, torch.prod, torch.norm, torch.linalg.vector_norm),
    *(getattr(torch.Tensor, name) for name in ("softmax", "log_softmax", "exp", "log", "pow", "__pow__", "rsqrt")),
    *(torch.Tensor.sum, torch.Tensor.prod, torch.Tensor.norm, torch.Tensor.cumsum),
}
"""sums and functions of a wide range: in float32"""


class _Autocast:
    """The state of autocast on the meta device."""

    def __init__(self) -> None:
        self.enabled, self.dtype, self.depth = False, torch.bfloat16, 0
        self.copies: dict[int, torch.Tensor] = {}

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """A float32 or 16-bit meta tensor in this type; weights are cast once."""
        if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return value
        if value.dtype == dtype or not value.is_meta:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(dtype)
        return self.copies[id(value)]


class _Rules(TorchFunctionMode):
    def __init__(self, state: _Autocast) -> None:
        super().__init__()
        self.state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.state.enabled and (func in _NARROW or func in _WIDE):
            dtype = self.state.dtype if func in _NARROW else torch.float32
            args, kwargs = tree_map(lambda each: self.state.cast(each, dtype), (args, kwargs))
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _attention(*args, **kwargs)
        if func is F.dropout and args[0].is_meta:
            return _dropout(*args, **kwargs)
        if func in _BACKWARD:  # recomputes forward passes, by these rules too
            with self:
                return _BACKWARD[func](*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> torch.Tensor:
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out: torch.Tensor = efficient(q, k, v, attn_mask, q.requires_grad, dropout_p, is_causal)[0]
    return out


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(x, p, training)[0] if training and p > 0 else x


def _backward(of: Any, gradients: Any = None, retain_graph: bool | None = None, **how: Any) -> None:
    """torch.autograd.backward."""
    given = how.get("gradient", how.get("grad_tensors", gradients))
    _run(of, (), given, keep=bool(retain_graph), accumulate=True)


def _gradients(of: Any, to: Any, **how: Any) -> tuple[torch.Tensor, ...]:
    """torch.autograd.grad."""
    return _run(of, to, how.get("grad_outputs"), keep=bool(how.get("retain_graph")), accumulate=False)


def _run(of: Any, to: Any, given: Any, *, keep: bool, accumulate: bool) -> tuple[torch.Tensor, ...]:
    """Torch's engine itself: its functions would ask the rules again, and run without them."""
    engine: Callable[..., tuple[torch.Tensor, ...]] = torch.autograd.graph._engine_run_backward
    of, to = (tuple(each) if isinstance(each, (tuple, list)) else (each,) for each in (of, to))
    given = (given,) if isinstance(given, torch.Tensor) else given or [None] * len(of)
    start = tuple(torch.ones_like(one) if value is None else value for one, value in zip(of, given, strict=True))
    return engine(of, start, keep, False, to, allow_unreachable=accumulate, accumulate_grad=accumulate)


_BACKWARD: dict[Any, Callable[..., Any]] = {
    torch.Tensor.backward: _backward,
    torch.autograd.backward: _backward,
    torch.autograd.grad: _gradients,
}


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Meta tensors go through models by a GPU's rules; this process's other threads must not train meanwhile."""
    state = _Autocast()
    plain = torch.autocast

    class Autocast(plain):  # type: ignore[misc, valid-type]
        """torch.autocast, also of the meta device."""

        def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **rest: Any):
            self._of_meta = device_type == _META
            if self._of_meta:
                self.device, self._enabled, self.fast_dtype = device_type, enabled, dtype or torch.bfloat16
            else:
                super().__init__(device_type, dtype, enabled, **rest)

        def __enter__(self) -> Any:
            if not self._of_meta:
                return super().__enter__()
            self._before = state.enabled, state.dtype
            state.enabled, state.dtype, state.depth = self._enabled, self.fast_dtype, state.depth + 1
            return self

        def __exit__(self, *error: Any) -> Any:
            if not self._of_meta:
                return super().__exit__(*error)
            state.enabled, state.dtype = self._before
            state.depth -= 1
            if state.depth == 0:
                state.copies.clear()
            return None

    def of_meta(ask: Callable[..., Any], answer: Callable[[], Any]) -> Callable[..., Any]:
        return lambda device_type=None: (
            answer() if device_type == _META else ask(*([device_type] if device_type else []))
        )

    changes = [
        (torch, "autocast", Autocast),
        (torch.amp, "autocast", Autocast),
        (torch, "is_autocast_enabled", of_meta(torch.is_autocast_enabled, lambda: state.enabled)),
        (torch, "get_autocast_dtype", of_meta(torch.get_autocast_dtype, lambda: state.dtype)),
        (torch.amp, "is_autocast_available", of_meta(torch.amp.is_autocast_available, lambda: True)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(_Rules(state))
        yield
