"""How many images can be drawn at once in the memory that is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from stage2_prior.engine import DecodingEngine

_SHARE = 0.25  # of the free memory
_MOST_IMAGES = {"cpu": 64, "other": 256}  # more at once are no faster per image
_GIB = 1 << 30


def images_that_fit(engine: DecodingEngine, rows_per_image: int) -> int:
    """Images whose cache, activations and probabilities take a quarter of the free memory; from 1 to a number
    from which on more are no faster.

    Args:
        engine: what draws.
        rows_per_image: 2 with guidance, else 1.
    """
    device = engine.weights.device
    fitting = int(free_bytes(device) * _SHARE // bytes_per_image(engine, rows_per_image))
    return min(max(1, fitting), _MOST_IMAGES["cpu" if device.type == "cpu" else "other"])


def bytes_per_image(engine: DecodingEngine, rows_per_image: int) -> int:
    """Memory that one image takes while it is drawn."""
    weights = engine.weights
    cache = 2 * len(weights.layers) * engine.n_codes * weights.d_model * 4
    logits, filters = 4 * engine.vocab_size, 32 * engine.vocab_size
    return rows_per_image * (cache + logits + 64 * weights.d_model) + filters


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken on a device; on a CPU what Linux says is available, elsewhere a guess of 4 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [_available(), _left_in_group()]
    return min((each for each in known if each is not None), default=4 * _GIB)


def _available() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    kib = [line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(kib[0]) * 1024 if kib else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_in_group() -> int | None:
    """What a container's limit leaves (cgroup v2); None without one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
