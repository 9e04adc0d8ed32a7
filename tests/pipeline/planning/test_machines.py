"""Named machines and the time of counted work on them."""

from __future__ import annotations

import pytest

from foundation.errors import ConfigError
from pipeline.planning.machines import (
    MACHINES,
    SHARE_OF_BANDWIDTH,
    SHARE_OF_PEAK,
    machine_of,
    named_machine,
    seconds,
)
from pipeline.planning.trace import Work


def test_an_operation_takes_its_products_or_its_bytes_or_a_start() -> None:
    h100 = named_machine("h100")
    peak, rate = 989e12 * SHARE_OF_PEAK["gpu"], 3350e9 * SHARE_OF_BANDWIDTH
    assert seconds([Work(10**15, 10, "narrow")], h100) == pytest.approx(10**15 / peak)
    assert seconds([Work(10, 10**12, "narrow")], h100) == pytest.approx(10**12 / rate)
    assert seconds([Work(0, 8, "product")] * 3, h100) == pytest.approx(15e-6)
    in_32_bits = seconds([Work(10**15, 10, "product")], h100)
    assert in_32_bits > 5 * seconds([Work(10**15, 10, "convolution")], h100)


@pytest.mark.parametrize("name", MACHINES)
def test_peaks_are_ordered(name: str) -> None:
    machine = MACHINES[name]
    assert machine.float32 <= machine.tf32 <= (machine.bf16 or machine.tf32)
    assert machine.memory > 0 and machine.bandwidth > 0


def test_an_unknown_machine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="--on") as caught:
        named_machine("h10O")
    assert "rtx-4090" in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("Tesla T4", "t4"),
        ("", None),
    ],
)
def test_a_gpu_is_known_by_its_driver_s_name_only_where_its_peaks_are(driver: str, name: str | None) -> None:
    assert machine_of(driver) is (None if name is None else MACHINES[name])
