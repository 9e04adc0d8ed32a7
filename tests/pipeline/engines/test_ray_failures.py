"""A stream on a Ray cluster: nodes that die and join, steps that refuse, waits that end."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.ray_nodes import NODE, ray_nodes
from support.ray_steps import doubling, failing, refusing

from foundation.errors import DataError, EngineError
from foundation.training.heartbeat import VARIABLE

pytest.importorskip("ray", reason="needs ray")
from pipeline.engines.ray_cluster import ray_cluster
from pipeline.engines.ray_data import RayEngine

pytestmark = pytest.mark.slow
WORKER = {key: value for key, value in NODE.items() if key != "include_dashboard"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with ray_nodes() as cluster:
        yield cluster


def numbered(n: int) -> Iterator[tuple[int, int]]:
    return ((i, 10 * i) for i in range(n))


def test_every_batch_comes_once_computed_with_the_threads_of_this_process(nodes: Any) -> None:
    found = list(RayEngine(3).results(doubling(), numbered(100)))
    assert sorted(number for number, _ in found) == list(range(100))
    assert all(value == 20 * number + 1 for number, (value, _, _) in found)
    assert {threads for _, (_, _, threads) in found} == {torch.get_num_threads()}
    assert os.getpid() not in {process for _, (_, process, _) in found}


def test_a_refusal_of_a_step_is_raised_here_as_it_was(nodes: Any) -> None:
    with pytest.raises(DataError, match=r"number: is refused\n  found:    50\n  fix:      give another"):
        list(RayEngine(1).results(refusing(50), numbered(8)))


def test_another_exception_of_a_step_ends_the_work_with_its_message(nodes: Any) -> None:
    with pytest.raises(Exception, match="was too much"):
        list(RayEngine(1).results(failing(), numbered(4)))


def test_a_node_that_is_killed_and_one_that_joins_change_nothing(nodes: Any) -> None:
    third = nodes.add_node(**WORKER)
    found = []
    for each in RayEngine(3).results(doubling(0.1), numbered(300)):
        found.append(each)
        if len(found) == 30:
            nodes.remove_node(third, allow_graceful=False)
        if len(found) == 90:
            nodes.add_node(**WORKER)
    assert sorted(number for number, _ in found) == list(range(300))
    assert all(value == 20 * number + 1 for number, (value, _, _) in found)


def test_work_that_never_moves_says_what_it_waits_for_and_ends(
    nodes: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "45")
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"waits in vain[\s\S]*no progress for 4\d s; workers ask for 1 to read"):
        list(RayEngine(1).results(doubling(1000.0), numbered(2)))
    assert time.monotonic() - began < 200
    assert "doubling: waiting for 3" in capsys.readouterr().err
    found = dict(RayEngine(1).results(doubling(), numbered(5)))  # the cluster is free again
    assert len(found) == 5


def test_a_connection_of_the_caller_is_used_and_stays(nodes: Any) -> None:
    with ray_cluster(None) as ray, ray_cluster(nodes.address):
        assert ray.is_initialized()
    assert ray.is_initialized()
