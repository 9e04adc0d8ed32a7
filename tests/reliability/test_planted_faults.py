"""The tests are tested: with each of these faults planted, the test that should find it does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reliability import (
    test_crash_points,
    test_export,
    test_not_finite,
    test_same_results,
    test_signals,
)
from support.crash_points import CRASHED, in_child
from torch import nn

from foundation import randomness
from foundation.codes import shards
from foundation.storage import durable
from foundation.training import checkpoints
from stage1_tokenizer.quantizers import vq

Patch = pytest.MonkeyPatch


def silent(*_: object, **__: object) -> None:
    """Keeps no figures."""


def direct_write(patch: Patch) -> None:
    """Files are written under their final names."""

    def publish_file(path: Path, write: Callable, verify: Callable | None = None) -> None:
        with durable.writing(path):
            durable._write(path, write)

    patch.setattr(durable, "publish_file", publish_file)
    patch.setattr(durable, "replace_file", lambda path, content: durable.write_bytes(path, content))


def delete_before_save(patch: Patch) -> None:
    """Room is made before there is something to put into it."""
    real = checkpoints._publish

    def publish(path: Path, step: int, state: dict[str, Any], length: int | None) -> None:
        for old in sorted(path.parent.glob("step-*"))[:-1]:
            durable.remove_folder(old)
        real(path, step, state, length)

    patch.setattr(checkpoints, "_publish", publish)


def unsynchronised_average(patch: Patch) -> None:
    """Each process averages the code vectors that it saw itself."""
    patch.setattr(vq, "all_reduce_sum", lambda tensor: tensor)


def wrapped_codes(patch: Patch) -> None:
    """As ``astype(uint16)`` does."""
    real = shards._to_table

    def to_table(shard: shards.Shard, spec: Any) -> Any:
        object.__setattr__(shard, "codes_BT", shard.codes_BT % 65_536)
        return real(shard, spec)

    patch.setattr(shards, "_to_table", to_table)


def same_samples_in_another_order(patch: Patch) -> None:
    """Only a test that compares sorted samples lets this pass."""
    real = randomness.DataOrder.at
    patch.setattr(randomness.DataOrder, "at", lambda self, positions: real(self, positions[::-1].copy()))
    one, other = (test_same_results.seen([(world, 14)]) for world in (1, 3))
    assert one != other
    for epoch in range(6):
        batches = slice(epoch * 25, epoch * 25 + 25)
        assert sorted(one[: 12 * 14]) == sorted(other[: 12 * 14]), batches


def swallowed_randomness(patch: Patch) -> None:
    """The loop goes on with whatever random numbers come next."""
    real = torch.manual_seed
    caller = "foundation.training.fit"
    patch.setattr(
        torch, "manual_seed", lambda seed: None if sys._getframe(1).f_globals["__name__"] == caller else real(seed)
    )


def non_strict_load(patch: Patch) -> None:
    """What is missing keeps its first random value."""
    real = nn.Module.load_state_dict
    patch.setattr(nn.Module, "load_state_dict", lambda self, state, *_, **__: real(self, state, strict=False))


def clock_seeded_order(patch: Patch) -> None:
    """Another order each time."""
    real = randomness.permuted
    patch.setattr(randomness, "permuted", lambda places, n, *key: real(places, n, *key, time.perf_counter_ns()))


def crash_at_any_file(folder: Path, frozen: Path) -> None:
    test_crash_points.test_a_file_is_replaced_or_left_as_it_was(folder, silent)


def crash_in_an_export(folder: Path, frozen: Path) -> None:
    test_export.logged_export(frozen, folder / "clean")  # direct writes do no harm as long as nothing happens
    clean = test_export.tree(folder / "clean" / "codes")
    test_export.test_an_export_survives_a_fault_at_every_durable_operation(folder, frozen, clean, silent, 1)


def crash_in_a_save(folder: Path, frozen: Path) -> None:
    test_crash_points.test_a_checkpoint_is_whole_or_not_there_and_two_sound_ones_always_are(folder, silent, (3,))


def two_processes(folder: Path, frozen: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_not_finite.test_what_is_spoilt_on_one_process_changes_nothing_on_either(folder, patch, silent)


def large_codebook(folder: Path, frozen: Path) -> None:
    test_same_results.test_codes_of_any_size_come_back(65_537, folder, silent)


def order_of_samples(folder: Path, frozen: Path) -> None:
    test_same_results.test_the_order_of_samples_does_not_depend_on_how_many_processes_there_are(silent)


def resumed_run(folder: Path, frozen: Path) -> None:
    test_signals.test_a_signal_at_any_moment_saves_within_one_step(folder, 15, silent)


def missing_tensor(folder: Path, frozen: Path) -> None:
    test_same_results.test_a_state_with_a_tensor_too_few_is_not_restored("average", silent)


FAULTS: dict[str, tuple[Callable[[Patch], None], Callable[[Path, Path], None], str]] = {
    "direct write of a file": (direct_write, crash_at_any_file, "in (old, new)"),
    "direct write in an export": (direct_write, crash_in_an_export, "clean.get(name) == sha256"),
    "delete before save": (delete_before_save, crash_in_a_save, "fewest >= 2"),
    "unsynchronised average": (unsynchronised_average, two_processes, "not different, different"),
    "wrapped uint16": (wrapped_codes, large_codebook, "np.array_equal(read_shard("),
    "sorted comparison": (same_samples_in_another_order, order_of_samples, "seen(changes) == alone"),
    "swallowed randomness": (swallowed_randomness, resumed_run, "torch.equal(weights("),
    "non-strict load": (non_strict_load, missing_tensor, "DID NOT RAISE"),
    "clock-seeded order": (clock_seeded_order, order_of_samples, "seen(changes) == alone"),
}
"""name: how it is planted, the check that must find it, and the line on which it does"""
QUICK = ("direct write of a file", "wrapped uint16", "non-strict load")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(
    fault: str, tmp_path: Path, frozen: Path, keep: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    plant, check, line = FAULTS[fault]

    def work() -> None:
        patch = pytest.MonkeyPatch()
        plant(patch)
        check(tmp_path, frozen)

    assert in_child(work) == CRASHED, "the test passes in spite of the fault"
    assert line in capfd.readouterr().err, "it was stopped by something else"
    keep("the tests are tested", **{"faults planted": 1, "found": 1})


@pytest.mark.parametrize("fault", QUICK)
def test_without_the_fault_the_same_check_passes(fault: str, tmp_path: Path, frozen: Path) -> None:
    assert in_child(lambda: FAULTS[fault][1](tmp_path, frozen)) == 0


def test_numbers_wrap_as_the_fault_says() -> None:
    assert np.array([65_536, 70_000]).astype(np.uint16).tolist() == [0, 4464]
