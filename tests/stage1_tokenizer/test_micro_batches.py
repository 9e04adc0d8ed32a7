"""A step in parts has the whole batch's losses and gradients, up to rounding, with any quantizer and losses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from support.tokenizer_systems import SYSTEMS, Step, images, largest_differences, step, task
from torch import nn

from foundation.errors import ConfigError

N = 5
"""images, which 2 does not divide"""


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What computes in float32 whatever the weights are computes in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", SYSTEMS)
def test_parts_have_the_gradient_of_the_whole_batch(name: str, in_float64: None) -> None:
    batch = images(N, torch.float64)
    whole, parts = (step(task(name, torch.float64, micro_batch_size=size), batch) for size in (None, 2))
    assert max(largest_differences(parts, whole)) < 1e-11


def test_parts_in_float32_with_blocks_computed_again() -> None:
    whole = step(task("vqgan"), images(N))
    again = step(task("vqgan", checkpoint_blocks=True), images(N))
    assert largest_differences(again, whole) == (0, 0)
    parts = step(task("vqgan", checkpoint_blocks=True, micro_batch_size=2), images(N))
    scalars, tensors = largest_differences(parts, whole)
    assert scalars < 1e-5 and tensors < 1e-3


def test_both_passes_of_a_part_drop_out_the_same() -> None:
    trained, seen = task("vqgan", dropout=0.5, micro_batch_size=2), []
    for network in (trained.model.encoder, trained.model.decoder):
        network.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    torch.manual_seed(3)
    trained.train_step({"images": images(4)}, 1)
    encoded, decoded = [seen[0], seen[1], seen[6], seen[7]], seen[2:6]
    for one, two, again, also in (encoded, decoded):
        assert torch.equal(one, again) and torch.equal(two, also)


def test_parts_drop_out_differently() -> None:
    trained, seen = task("fsq", dropout=0.5, micro_batch_size=1), []
    trained.model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    trained.train_step({"images": images(1).repeat(2, 1, 1, 1)}, 1)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("name", ["vqgan", "vqvae2"])
def test_a_resumed_training_in_parts_takes_the_same_steps(name: str) -> None:
    def train(trained, steps: range):  # type: ignore[no-untyped-def]
        for number in steps:
            torch.manual_seed(number)  # as fit does
            trained.train_step({"images": images(N)}, number)
        return trained

    settings = {"dropout": 0.2, "micro_batch_size": 2}
    whole = train(task(name, **settings), range(3))
    state = train(task(name, **settings), range(2)).state_dict()
    resumed = task(name, **settings)
    resumed.load_state_dict(state)
    train(resumed, range(2, 3))
    for one, other in zip(_tensors(whole), _tensors(resumed), strict=True):
        assert torch.equal(one, other)


def _tensors(trained) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    adversary = trained.objective.adversary
    models = [trained.model, trained.exported(), *([adversary.learner.model] if adversary else [])]
    return [each for model in models for each in model.state_dict().values()]


def test_a_norm_over_the_batch_is_refused() -> None:
    class Normed(nn.BatchNorm2d):
        pass

    trained = task("fsq")
    trained.model.encoder.extra = Normed(3)
    with pytest.raises(ConfigError, match=r"micro_batch_size(.|\n)*encoder.extra, a Normed(.|\n)*GroupNorm"):
        type(trained.micro_batches)(trained.model, trained.objective, trained.learner, 2)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_1_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=r"micro_batch_size(.|\n)*positive"):
        task("fsq", micro_batch_size=size)


OF_PROCESSES = ("vqgan", "lfq", "vqvae2")


def _two_processes(expected: dict[str, Step]) -> None:
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process keeps its parent's
    torch.set_num_threads(1)  # nor can it use the parent's OpenMP threads
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
    torch.set_default_dtype(torch.float64)
    for name, whole in expected.items():
        trained = task(name, torch.float64, micro_batch_size=2)
        row, tensors = step(trained, images(6, torch.float64).chunk(2)[state.process_index])
        same = {key: value for key, value in row.items() if key in ("adaptive_weight", "gradient_norm")}
        assert max(largest_differences((same, tensors), ({key: whole[0][key] for key in same}, whole[1]))) < 1e-10


def test_two_processes_in_parts_have_the_gradient_of_one(in_float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    expected = {name: step(task(name, torch.float64), images(6, torch.float64)) for name in OF_PROCESSES}
    debug_launcher(_two_processes, (expected,), num_processes=2)
