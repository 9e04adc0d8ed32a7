"""Sharding and gathering on two processes; what a launch may ask for."""

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, debug_launcher
from accelerate.state import AcceleratorState
from support.tiny_run import ROOT
from torch import nn

from foundation.errors import ConfigError
from foundation.hardware import announce_device
from foundation.training import parallel
from foundation.training.heartbeat import VARIABLE
from foundation.training.learner import WeightAverage, copy_with, load_full_tensors, on_meta
from foundation.training.optim import no_decay
from foundation.training.parallel import (
    build_accelerator,
    full_tensor,
    gathered,
    is_sharded,
    local_shard,
    on_every_process,
    replicated,
    shard,
    sharded_like,
    sharding_asked,
    unsynchronised,
)


def processes() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # else a fork keeps its parent's single process
    torch.set_num_threads(1)  # nor can a fork use its parent's OpenMP threads
    as_in_a_run = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[as_in_a_run])
    assert accelerator.num_processes == 2
    return accelerator


def launch(monkeypatch: pytest.MonkeyPatch, child: object, folder: Path) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    debug_launcher(child, (folder,), num_processes=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert len(list(folder.iterdir())) == 2


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1), nn.Linear(1, 3))
    no_decay(layers[0].weight)
    return layers


def _shard(folder: Path) -> None:
    accelerator = processes()
    plain, sharded = model(), model()
    shell = copy_with(sharded, on_meta)
    shard(sharded, [sharded[0]], accelerator)
    names = {name: local_shard(each).numel() for name, each in sharded.named_parameters()}
    assert names.keys() == dict(plain.named_parameters()).keys()
    assert all(is_sharded(each) for each in sharded.parameters()) and names["0.weight"] < 35
    assert sharded[0].weight.no_decay and not hasattr(sharded[1].weight, "no_decay")

    state = gathered({"model": sharded.state_dict(), "list": [3]}, keep=accelerator.is_main_process)
    assert state["list"] == [3]
    for name, value in plain.state_dict().items():
        assert torch.equal(state["model"][name], value if accelerator.is_main_process else torch.empty(0))
        assert torch.equal(
            local_shard(sharded_like(value, sharded.state_dict()[name])), local_shard(sharded.state_dict()[name])
        )

    average = WeightAverage(sharded, 0.5, shell)
    doubled = {name: 2 * value for name, value in plain.state_dict().items()}
    load_full_tensors(sharded, doubled)
    assert all(torch.equal(full_tensor(value), doubled[name]) for name, value in sharded.state_dict().items())
    average.update(sharded, step=100)
    exported = average.exported()
    assert type(exported) is nn.Sequential and not exported.training
    for name, value in exported.state_dict().items():
        assert not is_sharded(value) and torch.allclose(value, 1.5 * plain.state_dict()[name])
    (folder / str(accelerator.process_index)).touch()


def test_a_sharded_model_keeps_names_tags_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, _shard, tmp_path)


def _sync(folder: Path) -> None:
    accelerator = processes()
    rank = accelerator.process_index
    for sharded in (False, True):
        wrapped = model()
        if sharded:
            shard(wrapped, [wrapped[0]], accelerator)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # torch deprecates what accelerate passes
                wrapped = replicated(wrapped, accelerator)
        parts = torch.arange(20.0).reshape(4, 5) / 20
        with unsynchronised(wrapped):
            wrapped(parts[rank]).square().sum().backward()
        if not sharded:  # FSDP2 keeps what is not synchronised to itself
            own = torch.cat([each.grad.flatten() for each in wrapped.parameters()])
            both: torch.Tensor = accelerator.gather(own[None])
            assert not torch.allclose(both[0], both[1])
        wrapped(parts[2 + rank]).square().sum().backward()
        expected = model()
        (expected(parts).square().sum() / 2).backward()
        for mine, theirs in zip(wrapped.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(full_tensor(mine.grad), theirs.grad, rtol=1e-5)
    assert on_every_process(10 + rank, accelerator) == [10, 11]
    (folder / str(rank)).touch()


def test_only_the_last_pass_synchronises_and_the_sum_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, _sync, tmp_path)


def test_what_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    assert not sharding_asked(accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="fsdp_version"):
        sharding_asked(accelerator)
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert not sharding_asked(accelerator), "one process has nobody to share with"
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ConfigError, match="fsdp_offload_params"):
        sharding_asked(accelerator)


def test_one_process_needs_no_wrapper() -> None:
    plain = model()
    accelerator = Accelerator(cpu=True)
    assert replicated(plain, accelerator) is plain and on_every_process(7, accelerator) == [7]
    with unsynchronised(plain):
        plain(torch.ones(5)).sum().backward()
    assert full_tensor(plain[0].weight) is plain[0].weight is local_shard(plain[0].weight)


@pytest.fixture
def fresh_state() -> Iterator[None]:
    """A process in which accelerate has not chosen a device yet."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_state")
def test_a_training_runs_on_the_device_of_the_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    announce_device.cache_clear()
    assert build_accelerator("cpu").device.type == "cpu"
    assert capsys.readouterr().err == "device: cpu\n"
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(parallel, "usable_device", lambda name, *_, **__: name)
    assert build_accelerator("meta").device.type == "meta", "not what accelerate would choose"
    assert capsys.readouterr().err == "device: meta\n" and "ACCELERATE_TORCH_DEVICE" not in os.environ
    with pytest.raises(ConfigError, match=r"machine.device(.|\n)*start a new process"):
        build_accelerator("cpu")


@pytest.mark.usefixtures("fresh_state")
@pytest.mark.parametrize(
    ("device", "processes_here", "expected"),
    [("meta", "1", "cannot be used here"), ("cuda:1", "2", "the launcher numbers them")],
)
def test_a_device_that_cannot_be_is_refused_by_its_field(
    monkeypatch: pytest.MonkeyPatch, device: str, processes_here: str, expected: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes_here)
    with pytest.raises(ConfigError, match=r"machine\.device") as caught:
        build_accelerator(device)
    assert expected in str(caught.value)


@pytest.mark.usefixtures("fresh_state")
def test_a_launcher_s_cpu_is_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(parallel, "usable_device", lambda name, *_, **__: "meta" if name == "auto" else name)
    assert build_accelerator("auto").device.type == "cpu"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_the_others_do_not_join_says_where_it_waits_and_gives_up(rank: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": "0"}
    variables = {**os.environ, **places, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", VARIABLE: "4"}
    code = "from foundation.training import parallel; parallel.SAY_SECONDS = 1; parallel.build_accelerator('cpu')"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=variables, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert f"process {rank} waits at 127.0.0.1:{port} for the others of 2, at most 4 s ({VARIABLE})" in done.stderr
    assert (
        f"TrainingError: MASTER_ADDR:MASTER_PORT 127.0.0.1:{port}: process {rank} has not met the others" in done.stderr
    )
    assert ("1/2 clients joined" if rank == 0 else "timed out after 4000ms") in done.stderr
