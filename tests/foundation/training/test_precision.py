"""Precision auto: a measurement, an environment variable, and what is clearly faster."""

import dataclasses

import pytest
import torch

from foundation.errors import ConfigError
from foundation.training import precision
from foundation.training.precision import TYPICAL, VARIABLE, Convolution, Product, Speeds, measure_precisions, settled

CPU = torch.device("cpu")


def test_explicit_precisions_are_kept() -> None:
    assert settled("bf16", CPU) == "bf16" and settled("float32", CPU) == "float32"


def test_auto_is_what_the_measurement_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    small = (Product(64, 32, 32), Convolution(8, 8, 3, 8, 8))
    assert settled("auto", CPU, small) == measure_precisions(small, "cpu").faster


def test_the_environment_says_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("bf16", "float32"):
        monkeypatch.setenv(VARIABLE, value)
        assert settled("auto", CPU) == value
    assert settled("float32", CPU) == "float32"


def test_another_value_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fp16")
    with pytest.raises(ConfigError, match=r"(?s)TESSERA_PRECISION.*fp16"):
        settled("auto", CPU)


@pytest.mark.parametrize(
    ("float32", "bf16", "faster"),
    [(1.0, 0.5, "bf16"), (1.0, 0.97, "float32"), (1.0, 2.5, "float32"), (1.0, float("inf"), "float32")],
)
def test_bf16_must_be_clearly_faster(float32: float, bf16: float, faster: str) -> None:
    assert Speeds(float32, bf16).faster == faster


def test_speeds_are_said_in_words() -> None:
    assert Speeds(1.0, 2.5).text() == "bf16 is 2.5 times slower here"
    assert Speeds(1.0, 1.02).text() == Speeds(1.0, 0.98).text() == "bf16 is about as fast here"
    assert Speeds(3.0, 1.0).text() == "bf16 is 3.0 times as fast here"
    assert Speeds(1.0, float("inf")).text() == "bf16 is not available here"


def test_other_work_on_the_machine_slows_both_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest of times that take turns."""
    times = iter([1.0, 9.0] + 16 * [1.5, 1.0])
    seen: list[bool] = []

    def seconds(work: object, device: object, *, bf16: bool) -> float:
        seen.append(bf16)
        return next(times)

    monkeypatch.setattr(precision, "_seconds", seconds)
    operation = Product(640, 48, 16)
    assert measure_precisions((operation,), "cpu").text() == "bf16 is 9.0 times slower here", "given up at once"
    assert seen.count(True) == 1
    times = iter([3.0, 2.0] + [3.0, 1.0] + 16 * [2.0, 4.0])
    assert measure_precisions((dataclasses.replace(operation, rows=641),), "cpu").faster == "bf16"


def test_a_measurement_leaves_the_random_numbers_as_they_were() -> None:
    before = torch.get_rng_state()
    measure_precisions((Product(17, 16, 16),), "cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_a_large_operation_is_timed_in_part() -> None:
    for operation in (Product(10**6, 64, 64), Convolution(64, 64, 3, 512, 512)):
        work, share = operation.build(1e7, CPU)
        assert 0 < share < 0.1 and work().numel() > 0
    assert all(each.flops > 0 for each in TYPICAL)
