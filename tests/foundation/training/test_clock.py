"""Speeds between log lines: evaluations and checkpoints do not count, the wait for data does."""

import time
from collections.abc import Iterator

import pytest
import torch

from foundation.training.clock import TIMINGS, Clock, ModelWork

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test moves."""
    time_of_test = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: time_of_test[0])
    return time_of_test


def steps(clock: Clock, now: list[float], batch: dict[str, torch.Tensor], first: int, n: int) -> None:
    """Steps of 2 seconds, of which one waits for data, with a pause of 7 seconds after each."""

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            now[0] += 1.0
            yield batch

    source = batches()
    for step in range(first, first + n):
        clock.wait_for(source, step)
        now[0] += 1.0
        clock.end_step()
        now[0] += 7.0


@pytest.mark.parametrize(
    ("batch", "rate", "expected"),
    [
        ({"tokens": torch.zeros(3, 5), "labels": torch.zeros(3)}, "tokens_per_second", 2 * 15 / 2),
        ({"images": torch.zeros(4, 3, 2, 2)}, "images_per_second", 2 * 4 / 2),
    ],
)
def test_rates_are_of_all_processes_and_of_steps_alone(
    batch: dict[str, torch.Tensor], rate: str, expected: float, now: list[float]
) -> None:
    clock = Clock(2, CPU)
    steps(clock, now, batch, 0, 3)
    found = clock.read()
    assert found[rate] == pytest.approx(expected) and found["loading_seconds"] == pytest.approx(1.0)
    assert found["seconds"] == pytest.approx(27.0) and found.keys() <= TIMINGS
    assert clock.shown({"loss": 0.123456})["loss"] == "0.1235"
    assert clock.shown({})["waiting for data"] == "50%"
    steps(clock, now, batch, 3, 1)
    assert clock.read()[rate] == pytest.approx(expected), "of the steps since the last reading"


def test_the_share_of_the_peak_is_of_all_processes_devices_and_knows_when_the_adversary_begins(
    now: list[float],
) -> None:
    clock = Clock(2, CPU, ModelWork(flops=80.0, peak=10.0, flops_before=40.0, start_step=2))
    steps(clock, now, {"images": torch.zeros(1)}, 0, 4)
    assert clock.read()["model_flops_utilization"] == pytest.approx((2 * 40 + 2 * 80) / (8.0 * 10 * 2))


def test_the_peak_memory_of_a_process_never_falls() -> None:
    clock = Clock(1, CPU)
    before = clock.read()["peak_memory_mib"]
    held = torch.ones(64 << 18)
    assert clock.read()["peak_memory_mib"] >= before > 1 and len(held) > 0
