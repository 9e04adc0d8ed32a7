"""Time of a training: speed, share of the device's peak, waiting for data, peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

TIMINGS = frozenset(
    {
        *("seconds", "loading_seconds", "evaluate_seconds", "images_per_second", "tokens_per_second"),
        *("model_flops_utilization", "peak_memory_mib"),
    }
)
"""metrics that differ between two equal trainings"""
_COUNTED = {"tokens": "tokens_per_second", "images": "images_per_second"}
_MIB = 2**20


@dataclass(frozen=True)
class ModelWork:
    """What a training step computes, and what the device could compute.

    Attributes:
        flops: of one step of all processes: forward and backward products and convolutions, without recomputation.
        peak: FLOPs a second of one process's device, by its data sheet.
        flops_before: of a step before ``start_step``, at which the adversary begins.
        start_step: from 0.
    """

    flops: float
    peak: float
    flops_before: float = 0.0
    start_step: int = 0

    def at(self, step: int) -> float:
        """FLOPs of a step."""
        return self.flops if step >= self.start_step else self.flops_before


class Clock:
    """Measures the steps of a training; it reads no tensor.

    Rates are of whole steps, loading included, between two log lines; a log line waits for the device, so that they
    hold on a GPU too. Evaluations and checkpoints do not count.

    Args:
        n_processes: processes with a share of the batch each.
        device: of this process.
        work: of a step; None where the peak is not known.
    """

    def __init__(self, n_processes: int, device: torch.device, work: ModelWork | None = None) -> None:
        self.n_processes, self.device, self.work = n_processes, device, work
        self._began = self._asked = time.perf_counter()
        self._restart()

    def _restart(self) -> None:
        self._waited = self._spent = self._flops = 0.0
        self._steps, self._done = 0, dict.fromkeys(_COUNTED.values(), 0)

    def wait_for(self, batches: Iterator[dict[str, torch.Tensor]], step: int) -> dict[str, torch.Tensor]:
        """The next batch; the step begins."""
        self._asked = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - self._asked
        self._steps += 1
        self._flops += 0.0 if self.work is None else self.work.at(step)
        for name, rate in _COUNTED.items():
            if name in batch:
                self._done[rate] += self.n_processes * (batch[name].numel() if name == "tokens" else len(batch[name]))
        return batch

    def end_step(self) -> None:
        """The step ends, after its log line if it has one."""
        self._spent += time.perf_counter() - self._asked

    def read(self) -> dict[str, float]:
        """What the steps since the last reading took; the last one has just ended.

        Returns:
            ``seconds`` since the start; ``loading_seconds``, the mean wait of a step; ``images_per_second`` or
            ``tokens_per_second`` of all processes; ``peak_memory_mib`` of the process's device;
            ``model_flops_utilization``, the share of the peak, where that is known.
        """
        spent, steps = max(self._spent, 1e-9), max(1, self._steps)
        found = {"seconds": time.perf_counter() - self._began, "loading_seconds": self._waited / steps}
        found |= {rate: n / spent for rate, n in self._done.items() if n}
        if self.work is not None:
            available = self.work.peak * self.n_processes * spent
            found["model_flops_utilization"] = self._flops / available
        peak = peak_memory(self.device)
        self._shown = _shown(found, self._waited / spent)
        self._restart()
        return found if peak is None else {**found, "peak_memory_mib": peak / _MIB}

    def shown(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """For the progress bar: the loss, and the last reading's speed and share of time spent waiting for data."""
        loss = {"loss": f"{metrics['loss']:.4g}"} if "loss" in metrics else {}
        return {**loss, **self._shown}


def _shown(found: Mapping[str, float], waiting: float) -> dict[str, str]:
    speed = {"img/s": "images_per_second", "tok/s": "tokens_per_second"}
    shown = {unit: f"{found[rate]:,.0f}" for unit, rate in speed.items() if rate in found}
    if "model_flops_utilization" in found:
        shown["MFU"] = f"{found['model_flops_utilization']:.0%}"
    return {**shown, "waiting for data": f"{waiting:.0%}"}


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that the process has held so far: of tensors on a CUDA device, else in the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    held: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(held) * (1 if sys.platform == "darwin" else 1024)
