"""Named machines: published peaks, memory and bandwidth, and the time of counted work on them.

Peaks are of dense products, with float32 sums, in 10^12 FLOPs a second. An operation takes as long as its products at a
share of the peak, or its bytes at a share of the bandwidth, whichever is longer, and never less than a kernel's start.
Nothing here is measured.

Figures of NVIDIA's data sheets for H100 (2023, SXM), H200 (2024), A100 (2021, SXM), L4, L40S (2023) and T4 (2019), and
of the white papers of the Ada (2022, RTX 4090) and GA102 architectures (2021, RTX 3090), compared with published copies
of them. Where they give peaks with sparsity, half of them stands here. CPUs: cores x 2 units x 8 (AVX2) or 16 (AVX-512)
numbers x 2 FLOPs x 3 GHz, and the bandwidth of two channels of DDR5-4800 or eight of DDR4-3200.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from foundation.errors import ConfigError, nearest
from pipeline.planning.trace import Work


@dataclass(frozen=True)
class NamedMachine:
    """A device by its data sheet.

    Attributes:
        kind: whose kernels compute.
        bf16: peak in 10^12 FLOPs a second; None where it has no bf16.
        tf32: of convolutions in float32, which torch computes in TF32 where there is one.
        float32: of products in float32.
        memory: GB (10^9 bytes).
        bandwidth: of the memory, GB a second.
    """

    kind: Literal["cpu", "gpu"]
    bf16: float | None
    tf32: float
    float32: float
    memory: float
    bandwidth: float


MACHINES = {
    "h100": NamedMachine("gpu", 989, 494, 67, 80, 3350),
    "h200": NamedMachine("gpu", 989, 494, 67, 141, 4800),
    "a100-40": NamedMachine("gpu", 312, 156, 19.5, 40, 1555),
    "a100-80": NamedMachine("gpu", 312, 156, 19.5, 80, 2039),
    "l4": NamedMachine("gpu", 121, 60, 30.3, 24, 300),
    "l40s": NamedMachine("gpu", 362, 183, 91.6, 48, 864),
    "rtx-4090": NamedMachine("gpu", 165, 82.6, 82.6, 24, 1008),
    "rtx-3090": NamedMachine("gpu", 71, 35.6, 35.6, 24, 936),
    "t4": NamedMachine("gpu", None, 8.1, 8.1, 16, 320),
    "cpu-8": NamedMachine("cpu", None, 0.77, 0.77, 32, 77),
    "cpu-32-avx512": NamedMachine("cpu", None, 6.1, 6.1, 256, 205),
}
"""name => machine"""
SHARE_OF_PEAK = {"cpu": 0.6, "gpu": 0.4}
"""that products and convolutions of these models are taken to reach"""
SHARE_OF_BANDWIDTH = 0.7
_START = {"cpu": 2e-6, "gpu": 5e-6}
"""seconds of an operation at least"""


def named_machine(name: str) -> NamedMachine:
    """The machine of this name.

    Raises:
        ConfigError: none has it.
    """
    if name not in MACHINES:
        raise ConfigError(
            "names no known machine",
            field="--on",
            found=name,
            expected=", ".join(MACHINES),
            fix=nearest(name, MACHINES) or "leave out --on to measure on this machine",
        )
    return MACHINES[name]


_NAMES = {
    "h100": r"H100(?!.*PCIe)(?!.*NVL)",
    "h200": r"H200(?!.*NVL)",
    "a100-40": r"A100.*40GB",
    "a100-80": r"A100.*80GB",
    "l40s": r"L40S",
    "l4": r"L4",
    "rtx-4090": r"RTX 4090(?! D| Laptop)",
    "rtx-3090": r"RTX 3090(?! Ti)",
    "t4": r"T4",
}
"""how drivers call them; variants with other peaks are left out"""


def machine_of(device_name: str) -> NamedMachine | None:
    """The machine that a GPU's driver calls by this name; None for one whose data sheet is not here."""
    found = (name for name, pattern in _NAMES.items() if re.search(rf"\b{pattern}\b", device_name))
    return next((MACHINES[name] for name in found), None)


def seconds(work: Iterable[Work], machine: NamedMachine) -> float:
    """Seconds of counted operations, one after the other."""
    narrow = (machine.bf16 or machine.float32) * 1e12
    peaks = {"narrow": narrow, "convolution": machine.tf32 * 1e12, "product": machine.float32 * 1e12}
    speed, rate, start = SHARE_OF_PEAK[machine.kind], SHARE_OF_BANDWIDTH * machine.bandwidth * 1e9, _START[machine.kind]
    return sum(max(each.flops / (speed * peaks[each.kind]), each.n_bytes / rate, start) for each in work)
