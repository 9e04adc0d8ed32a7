"""Connections to Ray clusters that cannot be had end at once, and say what to do."""

import builtins
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.ray_nodes import ray_nodes
from support.ray_steps import doubling

from foundation.errors import ConfigError, EngineError
from pipeline.engines.config import EngineConfig
from pipeline.engines.open import open_engine
from pipeline.engines.ray_cluster import ray_cluster


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_an_address_without_a_cluster_is_refused_at_once(silent_port: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(ConfigError, match=r"--address: no Ray cluster can be used there.*refused"),
        ray_cluster(address),
    ):
        pass


@pytest.mark.slow
def test_a_server_that_is_no_cluster_is_given_up_within_a_minute(silent_port: int) -> None:
    pytest.importorskip("ray", reason="needs ray")
    began = time.monotonic()
    with pytest.raises(ConfigError, match="no Ray cluster can be used there"), ray_cluster(f"127.0.0.1:{silent_port}"):
        pass
    assert time.monotonic() - began < 120  # 45 seconds, on a machine that does nothing else


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    pytest.importorskip("ray", reason="needs ray")
    with pytest.raises(ConfigError, match=r"--address: [\s\S]*HOST:PORT"), ray_cluster(address):
        pass


def test_an_address_in_the_environment_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs ray")
    monkeypatch.setenv("RAY_ADDRESS", "head")
    with pytest.raises(ConfigError, match="RAY_ADDRESS: is no address"), ray_cluster(None):
        pass


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return there(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r'pip install "tessera-images\[ray\]"'), ray_cluster(None):
        pass


def test_options_without_effect_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ({"address": "auto"}, {"workers": 2}):
        with pytest.raises(ConfigError, match="has no effect with --engine local"):
            EngineConfig(**each)
    with (
        pytest.raises(ConfigError, match="--part: has no effect with --engine ray"),
        open_engine(EngineConfig(engine="ray"), part="0/2"),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without accelerate launch"), open_engine(EngineConfig(engine="ray")):
        pass


@pytest.mark.slow
def test_a_cluster_without_cpus_says_so() -> None:
    from pipeline.engines.ray_data import RayEngine

    with ray_nodes(1, num_cpus=0), pytest.raises(EngineError, match="the cluster has no CPUs"):
        list(RayEngine(1).results(doubling(), [(0, 1)]))
