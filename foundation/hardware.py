"""The machine: its cores, its memory and what of it a token dataset may take, and a torchvision that fits torch.

A CPU build of torch beside the default torchvision cannot load torchvision's operators; transformers then fails to
import its models with a message that names neither. See also ``tessera doctor``. Imports neither torch nor numpy.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foundation.config import check_types, require
from foundation.errors import ConfigError
from foundation.paths import PathText

if TYPE_CHECKING:
    import torch

_GROUP = Path("/sys/fs/cgroup")
_LIMITS = (_GROUP / "memory.max", _GROUP / "memory" / "memory.limit_in_bytes")
_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's names, from glibc's malloc.h"""
_KEPT_BYTES, _LARGEST_KEPT_BLOCK = 2**31 - 1, 1 << 30
_LARGEST_OF_OLD_GLIBC = 32 << 20


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to 2 GiB, for its next tensors.

    glibc returns large freed blocks to the system; the next tensor of that size gets new pages, which the system fills
    with zeros as they are touched: about a tenth of the time of training a tokenizer on a CPU. The peak of memory does
    not change. Call it before tensors are made; it cannot be undone.

    Returns:
        whether the C library can do it; musl and the libraries of other systems cannot.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD_GLIBC)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


def machine_memory() -> int:
    """Bytes of the machine's memory, or the container's limit if it is smaller."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows; a system without these names
        import psutil

        total = psutil.virtual_memory().total
    return min([total, *(limit for path in _LIMITS if (limit := _limit(path)))])


def free_memory() -> int:
    """Bytes of memory that a process can take without swapping, within the container's limit."""
    left = _left_in_group()
    return _available() if left is None else min(_available(), left)


def _available() -> int:
    try:
        lines = _MEMINFO.read_text(encoding="utf-8").splitlines()
        kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):  # no Linux
        kib = []
    if kib:
        return kib[0] * 1024
    import psutil

    return int(psutil.virtual_memory().available)


def _left_in_group() -> int | None:
    """What a container's limit leaves (cgroup v2); None without one."""
    limit, used = (_limit(_GROUP / name) for name in ("memory.max", "memory.current"))
    return None if limit is None or used is None else max(0, limit - used)


def processes_on_this_machine() -> int:
    """Processes of this training on this machine, as set by the launcher; 1 without one."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def usable_cores() -> int:
    """Cores for the threads of this process, at least 1: its share of the cores that this training may use.

    These are the cores of the process's affinity mask, or the container's quota of processor time, rounded up, if that
    is less.
    """
    return max(1, min([allowed_cores(), *_core_quotas()]) // processes_on_this_machine())


def allowed_cores() -> int:
    """Cores that this process may run on, by its affinity mask."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS, Windows
        return os.cpu_count() or 1


def _core_quotas() -> list[int]:
    """Processor time that the process's control groups, and those above them, allow, in cores, rounded up."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    groups = {_GROUP, _GROUP / "cpu"}
    for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if not kinds or "cpu" in kinds.split(","):  # version 2, or version 1
            top = _GROUP / "cpu" if kinds else _GROUP
            own = top / path.strip("/")
            groups |= {own, *(each for each in own.parents if each.is_relative_to(top))}
    return [math.ceil(quota) for each in groups if (quota := _core_quota(each))]


def _core_quota(group: Path) -> float | None:
    """Cores of one control group, of version 2 or 1; None without a limit."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{each}_us").read_text(encoding="utf-8") for each in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such file, or "max"
        return None


@dataclass(frozen=True, kw_only=True)
class TokenAccess:
    """How a token dataset is read; no field changes what is read."""

    form: Literal["auto", "memory", "packed", "streamed"] = "auto"
    """auto: in memory within the limit, else packed; packed: by row from a flat copy that is made once; streamed: from
    the parquet files as they are, for folders where no copy can be made, much slower in random order"""
    memory_limit_mib: int | None = None
    """MiB for one split in one process, or for the row groups that the streamed form keeps; null takes a quarter of
    the machine's memory, shared by the processes of a training"""
    packed_folder: PathText | None = None
    """folder for packed copies; null takes the environment variable TESSERA_PACKED_FOLDER, else .packed in the
    dataset"""

    def __post_init__(self) -> None:
        check_types(self)
        sound = self.memory_limit_mib is None or self.memory_limit_mib > 0
        require(sound, "memory_limit_mib", self.memory_limit_mib, "a positive number of MiB, or null")

    @property
    def memory_limit(self) -> int:
        """In bytes."""
        if self.memory_limit_mib is not None:
            return self.memory_limit_mib << 20
        return machine_memory() // (4 * processes_on_this_machine())


DEVICES = "auto, cpu, cuda, cuda:1, mps ..."
CURE = "install torch and torchvision together, from one index, in one command: pip install --upgrade torch torchvision"


def torchvision_problem() -> str | None:
    """None when torchvision is absent or loads; else one line that says what is wrong."""
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        return None if getattr(error, "name", None) == "torchvision" else f"torchvision cannot be imported: {error}"
    except (RuntimeError, OSError) as error:
        for name in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return f"torchvision does not match this torch: {error}"
    return None


def hide_broken_torchvision() -> None:
    """Make transformers treat a broken torchvision as absent, so that its model classes import."""
    if "torchvision" not in sys.modules and torchvision_problem() is not None:
        sys.modules["torchvision"] = None  # type: ignore[assignment]


def best_device() -> str:
    """What ``auto`` stands for: cuda, mps, xpu or another accelerator that torch finds here, else cpu."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None else found.type


def usable_device(name: str, field: str = "--device", *, announce: bool = True) -> str:
    """The device's name, if this machine has it.

    Args:
        name: such as cpu, cuda, cuda:1 or mps; auto takes ``best_device``.
        field: which option it is of.
        announce: say on stderr which device is used, once in a process.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    if not isinstance(name, (str, torch.device)):
        raise ConfigError("is not a device", field=field, found=repr(name)[:200], expected=DEVICES)
    name = best_device() if str(name) == "auto" else str(name)
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        fix = f"use {best_device()}, or auto"
        raise ConfigError(
            f"cannot be used here: {reason}", field=field, found=name, expected=DEVICES, fix=fix
        ) from error
    if announce:
        announce_device(name)
    return name


@functools.cache
def announce_device(device: str) -> None:
    """Say on stderr which device is used, once in a process."""
    print(f"device: {device}", file=sys.stderr)


def missing_compiler(device: torch.device) -> str | None:
    """What ``torch.compile`` lacks to make programs for a device, in words; None if nothing."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed, or does not know this GPU"
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX") or usual
    return None if shutil.which(name) else f"there is no C++ compiler {name} (the variable CXX names another)"


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device, without waiting for it: a GPU takes it out of pinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, on its device, or on the CPU where its device lacks that type, as MPS does."""
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 can be made on a device."""
    import torch

    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return False
    return True
