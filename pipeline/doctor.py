"""``tessera doctor``: what is installed, whether it fits together, and what to do where it does not."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from foundation.hardware import CURE, torchvision_problem
from pipeline.runs.recipe import versions


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; ``cure`` is set when something is wrong."""

    subject: str
    state: str
    cure: str | None = None


def diagnose() -> list[Finding]:
    """Check versions, torch with torchvision, transformers, devices, threads and disk."""
    findings = [Finding(name, version, _version_cure(name, version)) for name, version in versions().items()]
    findings.append(_torchvision())
    findings.append(_transformers())
    findings += [_device(), _disk()]
    return findings


def _version_cure(name: str, version: str) -> str | None:
    if version != "not installed":
        return None
    return f"pip install {name}"


def _torchvision() -> Finding:
    problem = torchvision_problem()
    if problem is not None:
        return Finding("torchvision", problem, CURE)
    if "torchvision" not in sys.modules:
        return Finding("torchvision", "not installed; the lpips package needs it, nothing else does")
    return Finding("torchvision", f"{sys.modules['torchvision'].__version__}, matches torch")


def _transformers() -> Finding:
    try:
        from stage1_tokenizer.hub import Tokenizer  # noqa: F401
    except Exception as error:  # whatever stops the import is the finding
        return Finding("transformers models", f"do not import: {error}", CURE)
    return Finding("transformers models", "import")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}")
    threads = f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} processors"
    return Finding("device", threads)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    cure = "free some space: a run needs a few GiB" if free < 2 else None
    return Finding("disk", f"{free:.1f} GiB free in {Path.cwd()}", cure)
