"""Every tensor of a model has its origin, and every name of a checkpoint its use or its reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from foundation.errors import CheckpointError
from foundation.unpickling.values import LazyTensor
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Plan, Rule, account_for, load_values

ORIGINS = {"weight": Origin(("w.left", "w.right"), lambda *parts: torch.cat(parts, 1)), "bias": Origin(("b",))}
STATE = {"w.left": torch.ones(2, 1), "w.right": torch.full((2, 2), 2.0), "b": torch.tensor([3.0, 4.0])}


def lazy(value: torch.Tensor) -> LazyTensor:
    return LazyTensor(tuple(value.shape), value.dtype, lambda: value)


def plan_of(state: Mapping[str, torch.Tensor], *rules: Rule, origins: Mapping[str, Origin] = ORIGINS) -> Plan:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    tensors = {name: lazy(value) for name, value in state.items()}
    return Plan(
        checkpoint=Checkpoint(tensors, {"epoch": "not a tensor"}, (Path("x.pt"),)),
        model=model,
        origins=origins,
        rules=rules,
    )


def test_all_names_are_accounted_for() -> None:
    account = account_for(plan_of({**STATE, "loss.a": torch.ones(1)}, Rule("loss", "of training")), "toy")
    assert account.used == ("w.left", "w.right", "b")
    assert account.ignored == {"of training": ("loss.a",), "not a tensor": ("epoch",)}
    assert account.lines()[:2] == ["3 tensors used", "1 left out (of training): loss.a"]


def test_values_are_joined_and_float32() -> None:
    model = load_values(plan_of({name: value.half() for name, value in STATE.items()}))
    assert not model.training and model.weight.dtype == torch.float32
    assert model.weight.tolist() == [[1, 2, 2], [1, 2, 2]] and model.bias.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"b": None}, "missing: b"),
        ({"stray": torch.ones(1)}, "left over: stray"),
        ({"b": torch.ones(3)}, r"of another shape: b makes \(3,\), not \(2,\)"),
        ({"w.right": torch.ones(3, 2)}, "do not fit together"),
    ],
)
def test_a_misfit_is_named(changes: dict[str, torch.Tensor | None], reason: str) -> None:
    state = {name: value for name, value in {**STATE, **changes}.items() if value is not None}
    with pytest.raises(CheckpointError, match=reason):
        account_for(plan_of(state), "toy")


def test_names_that_averages_replace_must_exist_too() -> None:
    origins = {**ORIGINS, "bias": Origin(("b",), passed_over=("b.last",))}
    with pytest.raises(CheckpointError, match=r"missing: b\.last"):
        account_for(plan_of(STATE, origins=origins), "toy")
    account = account_for(plan_of({**STATE, "b.last": torch.ones(2)}, origins=origins), "toy")
    assert ("b.last",) in account.ignored.values()


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"not finite(.|\n)*w\.left \+ w\.right"):
        load_values(plan_of({**STATE, "w.left": torch.full((2, 1), torch.nan)}))
