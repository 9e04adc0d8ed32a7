"""A connection to a Ray cluster, or a cluster of this machine alone while some work lasts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from foundation.errors import ConfigError, one_line
from foundation.hardware import usable_cores

_VARIABLE = "RAY_ADDRESS"
_SECONDS = 45.0
"""until a cluster that does not answer is given up"""
_INSTALL = 'pip install "tessera-images[ray]"'


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that is alive, and what Ray may use of it.

    Attributes:
        name: its address.
        cpus, gpus: that Ray counts; may be fractions.
    """

    name: str
    cpus: float
    gpus: float


def ray_module() -> Any:
    """The package, imported.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        what = "needs the package ray, which is not installed"
        raise ConfigError(what, field="--engine", found="ray", fix=_INSTALL) from error
    return ray


@contextlib.contextmanager
def ray_cluster(address: str | None, *, show_output: bool = False) -> Iterator[Any]:
    """Ray's module, connected while the context lasts.

    A connection that the caller has made before is used and stays. A cluster that is started here is shut down.

    Args:
        address: of a cluster; None takes ``RAY_ADDRESS``, else starts a cluster of this machine alone.
        show_output: whether the terminal shows what workers print.

    Raises:
        ConfigError: Ray is not installed, or the cluster does not answer.
    """
    ray = ray_module()
    given = address or os.environ.get(_VARIABLE)
    field = "--address" if address else _VARIABLE
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        same = address in (None, "auto", there)
        fix = "leave it out, or call ray.shutdown() before"
        ConfigError.unless(same, f"this process is connected to {there}", field="--address", found=address, fix=fix)
        yield ray
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of Ray Data's own ways; errors are raised
    how: dict[str, Any] = {"log_to_driver": show_output, "logging_level": "error"}
    if given is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        how |= {"num_cpus": usable_cores(), "include_dashboard": False}
    else:
        _require_reachable(given, field)
    try:
        with _no_lines_of_cpp():
            ray.init(address=given or "local", **how)
    except Exception as error:  # of many classes
        raise _unreachable(given or "local", field, one_line(error)) from error
    if not show_output:
        _silence()
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_lines_of_cpp() -> Iterator[None]:
    """Ray's core says that it has read RAY_BACKEND_LOG_LEVEL, whatever that says; what fails is raised."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        sys.stderr.flush()
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _silence() -> None:
    """Keep Ray's pages on lost workers out of the terminal; what matters of them is in our own messages."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def nodes() -> list[Node]:
    """The living nodes of the connected cluster."""
    found = [each for each in ray_module().nodes() if each["Alive"]]
    return [
        Node(each["NodeManagerAddress"], each["Resources"].get("CPU", 0.0), each["Resources"].get("GPU", 0.0))
        for each in found
    ]


def resources_text() -> str:
    """What the connected cluster has, and what of it is free, in words."""
    free, living = ray_module().available_resources(), nodes()
    cpus, gpus = sum(each.cpus for each in living), sum(each.gpus for each in living)
    several = "node" if len(living) == 1 else "nodes"
    of_gpus = f", {gpus:g} GPUs ({free.get('GPU', 0.0):g} free)" if gpus else ", no GPU"
    return f"{len(living)} {several}: {cpus:g} CPUs ({free.get('CPU', 0.0):g} free){of_gpus}"


def _require_reachable(address: str, field: str) -> None:
    """Refuse a cluster that does not answer: Ray would try again for minutes.

    Raises:
        ConfigError: naming what was tried.
    """
    expected = "auto, or the HOST:PORT of the cluster's head"
    if "://" in address:
        fix = "run this on a node of the cluster, with --address auto, or through ray job submit"
        raise ConfigError("cannot be used", field=field, found=address, expected=expected, fix=fix)
    host, _, port = address.rpartition(":")
    if address != "auto":
        right = bool(host) and port.isdecimal()
        ConfigError.unless(right, "is no address of a cluster", field=field, found=address, expected=expected)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise _unreachable(address, field, one_line(error)) from error
    line = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(line, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, field, f"no answer for {_SECONDS:g} seconds") from error
    if asked.returncode:
        said = [each for each in asked.stderr.splitlines() if each.strip()]
        raise _unreachable(address, field, said[-1] if said else f"ray status ended with {asked.returncode}")


def _unreachable(address: str, field: str, reason: str) -> ConfigError:
    what = f"no Ray cluster can be used there: {reason}"
    fix = "start one (ray start --head), run this on one of its nodes, or leave the address out for this machine alone"
    return ConfigError(what, field=field, found=address, expected="a cluster that answers", fix=fix)
