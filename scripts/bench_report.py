"""What the benchmarks share: timing in turn, peak memory, the table and the JSON rows.

Scripts are run as ``python scripts/bench_x.py``, so that ``from bench_report import ...`` finds this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

_MIB = 1 << 20


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one thing.

    Attributes:
        seconds: every run, in order.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds of one run."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest less fastest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes:
        workload: what was run.
        unit: of ``ours`` and ``reference``, e.g. ``ms`` or ``images/s``.
        ours: our figure.
        reference: the figure it is compared with; None where the reference gave none.
        reference_name: package and class, or what the reference is.
        ratio: above 1 means that ours is better, whatever the unit.
        floor: the best that this machine could do in the same unit, None where unknown.
        config: sizes, threads, spreads: whatever is needed to read the figure.
    """

    workload: str
    unit: str
    ours: float
    reference: float | None
    reference_name: str
    ratio: float | None
    floor: float | None = None
    config: dict[str, Any] = field(default_factory=dict)


def compare(
    workload: str,
    unit: str,
    ours: float,
    reference: float | None,
    reference_name: str,
    *,
    more_is_better: bool = False,
    floor: float | None = None,
    config: Mapping[str, Any] | None = None,
) -> Row:
    """A row with its ratio: reference / ours for times and memory, ours / reference for rates."""
    ratio = None
    if reference is not None and min(ours, reference) > 0:
        ratio = ours / reference if more_is_better else reference / ours
    return Row(workload, unit, ours, reference, reference_name, ratio, floor, dict(config or {}))


def time_in_turn(
    cases: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 2, device: str = "cpu"
) -> dict[str, Timing]:
    """Run all cases once, then all again, and so on, so that a busy machine slows each alike.

    Args:
        cases: name => a run without arguments.
        repeats: timed rounds, at least 1.
        warm_up: rounds before them that are not counted.
        device: with ``cuda``, every run is waited for.

    Returns:
        the timing of each case.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    gc.collect()
    for turn in range(warm_up + repeats):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            _finish(device)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


def peak_memory_mib(run: Callable[[], object], device: str = "cpu") -> float:
    """MiB that ``run`` holds at its peak above what the process held before.

    On a CPU: the peak resident set (VmHWM, reset beforehand), so call it in a fresh process (``in_fresh_process``),
    where no freed memory of an earlier run is used again. On a GPU: the allocator's peak.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _process_kib("VmRSS")
    run()
    return max(0, _process_kib("VmHWM") - before) / 1024


def resident_mib() -> float:
    """MiB of this process in memory now."""
    return _process_kib("VmRSS") / 1024


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a module-level function called in a new interpreter."""
    with _interpreter() as pool:
        return pool.submit(function, *arguments).result()


class OwnProcess:
    """A run in an interpreter of its own, so that one case does not get the allocator's settings of another.

    ``build(*arguments)``, of a module-level function, makes the run there; each call runs it once.
    """

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: Any) -> None:
        self._pool = _interpreter()
        self._pool.submit(_keep, build, arguments).result()

    def __call__(self) -> None:
        """Run it once."""
        self._pool.submit(_run_kept).result()

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()


def time_in_own_processes(
    build: Callable[..., Callable[[], object]], cases: Mapping[str, tuple[Any, ...]], repeats: int
) -> dict[str, Timing]:
    """As ``time_in_turn``, each case in a process of its own, where ``build(*arguments)`` makes its run."""
    with ExitStack() as stack:
        runs = {name: stack.enter_context(OwnProcess(build, *arguments)) for name, arguments in cases.items()}
        return time_in_turn(runs, repeats=repeats)


_kept: Callable[[], object] | None = None


def _keep(build: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    global _kept
    _kept = build(*arguments)


def _run_kept() -> None:
    assert _kept is not None
    _kept()


def _interpreter() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


def matmul_peak(device: str = "cpu", size: int = 2048, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of the best of a few square matrix products: what the floors divide by."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timing = time_in_turn({"matmul": lambda: left @ right}, repeats=5, device=device)["matmul"]
    return 2 * size**3 / min(timing.seconds)


def bench_parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with ``--quick`` and ``--json``; scripts may add their own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and only the small sizes")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser


def report(rows: list[Row], json_file: Path | None) -> None:
    """Print the table, and write the rows as JSON if a file is given."""
    print(table(rows))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def table(rows: list[Row]) -> str:
    """The rows as text in columns; the spreads of ``config`` beside their figures."""
    cells = [("workload", "unit", "ours", "reference", "ratio", "floor", "reference is")]
    for row in rows:
        ours = _figure(row.ours, row.config.get("spread_ours"))
        reference = _figure(row.reference, row.config.get("spread_reference"))
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        cells.append((row.workload, row.unit, ours, reference, ratio, _figure(row.floor), row.reference_name))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines)


def _figure(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if spread is None else f"{value:.4g} (spread {spread:.0%})"


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _process_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}; memory is measured on Linux only")
