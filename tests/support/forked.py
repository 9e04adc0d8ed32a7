"""Commands in processes of their own, forked from a server that has imported what they need: they begin at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "torch._dynamo",
        "accelerate",
        "sklearn.datasets",
        "matplotlib.figure",
        "pipeline.commands.job",
        "s3fs",
        "pipeline.planning.estimate",
        "pipeline.runs.stages",
    ]
)


def start_command(line: list[str], said: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """Start ``tessera LINE`` with as many threads as this process computes with.

    Args:
        line: arguments of the command line.
        said: a file that gets what the command prints, on both streams.
        environment: variables beside those of the server.
    """
    import torch

    process = _FORKED.Process(target=_command, args=(line, said, torch.get_num_threads(), dict(environment or {})))
    process.start()
    return process


def _command(line: list[str], said: Path, n_threads: int, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    with said.open("wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    import torch

    from pipeline.cli import main

    torch.set_num_threads(n_threads)
    sys.exit(main(line))
