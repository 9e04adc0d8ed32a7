"""Precision of training on a device: bf16 where it is faster there, else float32.

Processors without bf16 instructions imitate them, and are then two to ten times slower than in float32. Which one is
faster is measured with products and convolutions of the sizes that a model has.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch.nn import functional as F

from foundation.config import require
from foundation.training.config import Precision
from foundation.training.linear import linear

Settled = Literal["float32", "bf16"]
VARIABLE = "TESSERA_PRECISION"
"""environment variable that says what ``auto`` means, instead of a measurement"""
_CLEARLY = 1.1
"""bf16 must be this much faster: within noise, float32 is the safer choice"""
_HOPELESS = 5.0
"""times as slow as float32: one measurement is enough"""
_FLOPS = {"cpu": 3e8}
_FLOPS_OF_GPU = 5e10
"""of one timed forward pass: milliseconds"""
_ROUNDS, _MOST_IMAGES = 9, 64


@dataclass(frozen=True)
class Product:
    """(rows, width_in) @ (width_in, width_out)."""

    rows: int
    width_in: int
    width_out: int

    @property
    def flops(self) -> float:
        """Of a forward pass."""
        return 2.0 * self.rows * self.width_in * self.width_out

    def build(self, flops: float, device: torch.device) -> tuple[Callable[[], torch.Tensor], float]:
        """A forward pass of about ``flops``, with gradients to input and weight; and how many of this one it is."""
        rows = max(16, int(self.rows * min(_MOST_IMAGES, flops / self.flops)))
        x = torch.randn(rows, self.width_in, device=device, requires_grad=True)
        weight = torch.randn(self.width_out, self.width_in, device=device, requires_grad=True)
        return lambda: linear(x, weight), rows / self.rows


@dataclass(frozen=True)
class Convolution:
    """A convolution of stride 1 on images of ``height`` x ``width``, of one image."""

    channels_in: int
    channels_out: int
    kernel: int
    height: int
    width: int

    @property
    def flops(self) -> float:
        """Of a forward pass."""
        return 2.0 * self.channels_in * self.channels_out * self.kernel**2 * self.height * self.width

    def build(self, flops: float, device: torch.device) -> tuple[Callable[[], torch.Tensor], float]:
        """A forward pass of about ``flops``, with gradients to input and weight; and how many of this one it is."""
        batch, kernel = max(1, min(_MOST_IMAGES, int(flops / self.flops))), self.kernel
        height = max(1, int(self.height * min(1.0, flops / self.flops)))
        x = torch.randn(batch, self.channels_in, height, self.width, device=device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(self.channels_out, self.channels_in, kernel, kernel, device=device, requires_grad=True)
        return lambda: F.conv2d(x, weight, padding=kernel // 2), batch * height / self.height


Operation = Product | Convolution
TYPICAL: tuple[Operation, ...] = (Product(2048, 256, 704), Convolution(64, 64, 3, 32, 32))
"""of small models, where sizes are not known"""


@dataclass(frozen=True)
class Speeds:
    """Time of forward and backward passes in both precisions.

    Attributes:
        float32, bf16: seconds, of the same work; bf16 is infinite where the device cannot do it.
    """

    float32: float
    bf16: float

    @property
    def faster(self) -> Settled:
        """bf16 if it is clearly faster."""
        return "bf16" if self.bf16 * _CLEARLY < self.float32 else "float32"

    def text(self) -> str:
        """Compare both in words."""
        if self.bf16 == float("inf"):
            return "bf16 is not available here"
        ratio = self.float32 / self.bf16
        if 0.95 < ratio < 1.05:
            return "bf16 is about as fast here"
        return f"bf16 is {ratio:.1f} times as fast here" if ratio >= 1 else f"bf16 is {1 / ratio:.1f} times slower here"


def settled(precision: Precision, device: torch.device, operations: Sequence[Operation] = TYPICAL) -> Settled:
    """The precision to train in: ``auto`` becomes the faster one on this device.

    Args:
        precision: as configured.
        device: where the training runs.
        operations: what the model mostly computes.

    Raises:
        ConfigError: the environment variable TESSERA_PRECISION holds something else than a precision.
    """
    if precision != "auto":
        return precision
    asked = os.environ.get(VARIABLE, "auto")
    require(asked in ("auto", "float32", "bf16"), VARIABLE, asked, "auto, float32 or bf16")
    if asked != "auto":
        return cast(Settled, asked)
    return measure_precisions(tuple(operations), str(device)).faster


@functools.cache
def measure_precisions(operations: tuple[Operation, ...], device: str) -> Speeds:
    """Time forward and backward passes of each operation in float32 and under bf16 autocast, a second or less.

    Both take turns, and the shortest time of each counts: other work on the machine slows both, or neither.
    """
    place, totals = torch.device(device), {"float32": 0.0, "bf16": 0.0}
    flops = _FLOPS.get(place.type, _FLOPS_OF_GPU)
    with torch.random.fork_rng():
        for operation in operations:
            work, share = operation.build(flops, place)
            exact, lower = float("inf"), float("inf")
            for i in range(_ROUNDS):
                exact = min(exact, _seconds(work, place, bf16=False))
                if i > 0 and not lower < _HOPELESS * exact:
                    continue
                try:
                    lower = min(lower, _seconds(work, place, bf16=True))
                except (RuntimeError, NotImplementedError):  # no bf16 on this device
                    break
            totals["float32"] += exact / share
            totals["bf16"] += lower / share
    return Speeds(**totals)


def _seconds(work: Callable[[], torch.Tensor], device: torch.device, *, bf16: bool) -> float:
    """Of a forward and a backward pass."""
    _wait(device)
    began = time.perf_counter()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        result = work()
    result.sum().backward()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
