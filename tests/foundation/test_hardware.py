import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.other_systems import System, macos, windows

from foundation import hardware
from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.hardware import TokenAccess, hide_broken_torchvision, torchvision_problem


def test_the_container_s_limit_goes_before_the_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = tmp_path / "memory.max", tmp_path / "absent"
    monkeypatch.setattr(hardware, "_LIMITS", limits)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for content, expected in (("max\n", whole), (f"{2**63 - 4096}\n", whole), ("8388608\n", 8388608)):
        limits[0].write_text(content)
        assert hardware.machine_memory() == expected


@pytest.mark.parametrize("system", [windows, macos])
def test_other_systems_know_their_memory(system: System) -> None:
    here = hardware.machine_memory()
    with system():
        assert here <= hardware.machine_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < hardware.free_memory() < hardware.machine_memory()


def test_free_memory_is_what_the_container_s_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(hardware, "_GROUP", tmp_path)
    monkeypatch.setattr(hardware, "_MEMINFO", meminfo)
    meminfo.write_text("MemTotal: 4096 kB\nMemAvailable:  2048 kB\n")
    assert hardware.free_memory() == 2 << 20
    for limit, used, expected in (("max", "5", 2 << 20), (1 << 20, 1 << 19, 1 << 19), (1 << 19, 1 << 20, 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        assert hardware.free_memory() == expected


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups without limits, on a machine of 8 cores."""
    monkeypatch.setattr(hardware, "_GROUP", tmp_path)
    monkeypatch.setattr(hardware, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(hardware, "allowed_cores", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    (tmp_path / "own").write_text("0::/user/job\n4:cpuset:/other\n2:cpu,cpuacct:/old/job\n")
    for name in ("user/job", "cpu/old/job"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("folder", "quota"), [("", "2.5"), ("user", "3"), ("user/job", "3"), ("cpu/old", "2.1")])
def test_a_quota_of_any_group_above_the_process_limits_the_cores(groups: Path, folder: str, quota: str) -> None:
    assert hardware.usable_cores() == 8
    microseconds = str(int(100_000 * float(quota)))
    if folder.startswith("cpu"):
        (groups / folder / "cpu.cfs_quota_us").write_text(f"{microseconds}\n")
        (groups / folder / "cpu.cfs_period_us").write_text("100000\n")
    else:
        (groups / folder / "cpu.max").write_text(f"{microseconds} 100000\n")
    assert hardware.usable_cores() == 3


def test_no_limit_is_no_quota_and_a_small_one_leaves_a_core(groups: Path) -> None:
    (groups / "cpu.max").write_text("max 100000\n")
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert hardware.usable_cores() == 8
    (groups / "cpu.max").write_text("20000 100000\n")
    assert hardware.usable_cores() == 1


def test_the_processes_of_a_training_share_the_cores(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n_processes, expected in (("3", 2), ("8", 1), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", n_processes)
        assert hardware.usable_cores() == expected


@pytest.mark.parametrize("system", [windows, macos])
def test_other_systems_count_their_processors(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with system():
        assert hardware.usable_cores() == os.cpu_count()


def test_a_quarter_of_the_memory_is_shared_by_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = TokenAccess().memory_limit
    assert alone == hardware.machine_memory() // 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert TokenAccess().memory_limit == hardware.machine_memory() // 32
    assert TokenAccess(memory_limit_mib=3).memory_limit == 3 << 20


def test_it_is_set_by_a_recipe() -> None:
    values = {"form": "packed", "memory_limit_mib": 5, "packed_folder": "/scratch"}
    assert from_dict(TokenAccess, values) == TokenAccess(form="packed", memory_limit_mib=5, packed_folder="/scratch")
    for wrong in ({"form": "mapped"}, {"memory_limit_mib": 0}, {"memory_limit": 5}):
        with pytest.raises(ConfigError):
            from_dict(TokenAccess, wrong)


FAULTS = """
import resource, torch
from foundation.hardware import keep_freed_memory

def faults(n_tensors):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n_tensors):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
first = faults(4)
assert keep_freed_memory()
faults(12)  # the first ones get new pages
print(first, faults(4))
"""


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="the C library is not glibc",
)
def test_memory_that_was_freed_is_used_again_without_new_pages() -> None:
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    before, after = map(int, done.stdout.split())
    assert before > 4 * 100 and after < before / 20  # 64 MiB are 16,384 pages, or 32 large ones


def test_a_c_library_without_the_setting_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: object())
    assert not hardware.keep_freed_memory()


def test_a_torchvision_that_does_not_load_is_named_and_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert "does not match this torch" in str(torchvision_problem())
    monkeypatch.setitem(sys.modules, "torchvision", None)  # put back afterwards
    del sys.modules["torchvision"]
    hide_broken_torchvision()
    assert sys.modules["torchvision"] is None
    assert torchvision_problem() is None, "it counts as absent"
