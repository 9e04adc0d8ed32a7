"""How much memory this process may use, and that it keeps what it has.

Recognise a torchvision that does not match torch before it breaks transformers' imports.

A CPU build of torch beside the default torchvision cannot load torchvision's operators; transformers then fails to
import its models with a message that names neither. See also ``tessera doctor``.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path

from foundation.errors import ConfigError

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's names, from glibc's malloc.h"""
_KEPT_BYTES, _LARGEST_KEPT_BLOCK = 2**31 - 1, 1 << 30
_LARGEST_OF_OLD_GLIBC = 32 << 20


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to 2 GiB, for its next tensors.

    glibc hands large blocks back to the system when they are freed. The next tensor of that size then gets new pages,
    which the system fills with zeros one by one as they are touched: in the training of a tokenizer on a CPU about a
    tenth of the time. The peak of memory stays what it was. Call it before tensors are made; it cannot be taken back.

    Returns:
        whether the C library can do it; musl and the libraries of other systems cannot.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD_GLIBC)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


def machine_memory() -> int:
    """Bytes of the machine's memory, or of the container's where that has a limit of its own."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(limit for path in _LIMITS if (limit := _limit(path)))])


def processes_on_this_machine() -> int:
    """How many processes of this training share the machine, as the launcher says; 1 without a launcher."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


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


def usable_device(name: str) -> str:
    """The device's name, if this machine has it.

    Raises:
        ConfigError: it has not.
    """
    import torch

    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"cannot be used here: {reason}", field="--device", found=name, fix="use cpu") from error
    return name
