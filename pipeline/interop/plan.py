"""From a checkpoint's names to our tensors: what each is made of, and an account of every name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from foundation.errors import CheckpointError, nearest
from foundation.unpickling.values import LazyTensor
from pipeline.interop.checkpoint import Checkpoint

_SHOWN = 5
_PASSED_OVER = "weights of the last step, in whose place averages are used"


@dataclass(frozen=True)
class Origin:
    """What one of our tensors is made of.

    Attributes:
        keys: names in the checkpoint.
        make: those tensors => ours; it must also work on tensors without values, which tells the shape.
        passed_over: names that must be there too, but in whose place ``keys`` are used.
    """

    keys: tuple[str, ...]
    make: Callable[..., torch.Tensor] = torch.Tensor.detach
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Names that are left out on purpose.

    Attributes:
        pattern: regular expression that the beginning of a name must match.
        reason: why, for the summary.
    """

    pattern: str
    reason: str


@dataclass(frozen=True)
class Account:
    """Where every name of a checkpoint went.

    Attributes:
        used: names that our tensors are made of.
        ignored: reason -> names.
    """

    used: tuple[str, ...]
    ignored: Mapping[str, tuple[str, ...]]

    def lines(self) -> list[str]:
        """For people: one line for what is used, one for each reason why something is not."""
        told = [f"{len(self.used)} tensors used"]
        for reason, keys in self.ignored.items():
            more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            told.append(f"{len(keys)} left out ({reason}): {', '.join(keys[:_SHOWN])}{more}")
        return told


class Plan(Protocol):
    """What an importer makes of a checkpoint, before anything is read or written but names and shapes."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The part of the file that the model is made of."""

    @property
    def model(self) -> nn.Module:
        """Our model without values (on torch's meta device)."""

    @property
    def origins(self) -> Mapping[str, Origin]:
        """One entry for each tensor of the model's state dict."""

    @property
    def rules(self) -> Sequence[Rule]:
        """What is left out."""

    @property
    def notes(self) -> Sequence[str]:
        """What was found or assumed, for the summary."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Fill an empty folder with the model, which has its values now."""


def account_for(plan: Plan, format_name: str) -> Account:
    """Check that a plan uses its checkpoint up: every tensor of ours has its origin, every name is used or left out.

    Raises:
        CheckpointError: naming the tensors that are missing, left over, or of another shape.
    """
    own, checkpoint = plan.model.state_dict(), plan.checkpoint
    assert own.keys() == plan.origins.keys(), sorted(own.keys() ^ plan.origins.keys())
    wanted = dict.fromkeys(key for origin in plan.origins.values() for key in origin.keys)
    passed_over = {key for origin in plan.origins.values() for key in origin.passed_over}
    missing = [key for key in (*wanted, *passed_over) if key not in checkpoint.tensors]
    reshaped = [] if missing else [
        f"{' + '.join(plan.origins[name].keys)} makes {shape}, not {tuple(own[name].shape)}"
        for name, shape in _shapes(plan).items() if shape != tuple(own[name].shape)]  # fmt: skip
    ignored: dict[str, list[str]] = {}
    extra = []
    for key in checkpoint.tensors:
        if key in passed_over:
            ignored.setdefault(_PASSED_OVER, []).append(key)
        elif key not in wanted:
            rule = next((each for each in plan.rules if re.match(each.pattern, key)), None)
            ignored.setdefault(rule.reason, []).append(key) if rule else extra.append(key)
    if missing or extra or reshaped:
        raise _misfit(checkpoint, format_name, missing, extra, reshaped)
    for name, reason in checkpoint.beside.items():
        ignored.setdefault(reason, []).append(name)
    return Account(tuple(wanted), {reason: tuple(keys) for reason, keys in ignored.items()})


def load_values(plan: Plan) -> nn.Module:
    """The plan's model with the file's values, float32, in evaluation mode.

    Raises:
        CheckpointError: a value that is not finite, or data that is not there.
    """
    state, checkpoint = {}, plan.checkpoint
    for name, origin in plan.origins.items():
        value = origin.make(*(_float(checkpoint.tensors[key]) for key in origin.keys)).float().clone()
        if not bool(value.isfinite().all()):
            raise CheckpointError("holds values that are not finite", field=checkpoint.source,
                                  found=" + ".join(origin.keys), fix="take the file anew")  # fmt: skip
        state[name] = value.contiguous()
    plan.model.load_state_dict(state, assign=True)
    return plan.model.eval()


def _float(tensor: LazyTensor) -> torch.Tensor:
    return tensor.read().float()


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    checkpoint = plan.checkpoint

    def empty(key: str) -> torch.Tensor:
        return torch.empty(checkpoint.tensors[key].shape, device="meta")

    shapes = {}
    for name, origin in plan.origins.items():
        try:
            shapes[name] = tuple(origin.make(*map(empty, origin.keys)).shape)
        except (RuntimeError, IndexError, ValueError) as error:
            found = ", ".join(f"{key} {checkpoint.tensors[key].shape}" for key in origin.keys)
            raise CheckpointError("has tensors that do not fit together", field=checkpoint.source, found=found,
                                  fix=str(error).splitlines()[0][:200]) from error  # fmt: skip
    return shapes


def _misfit(
    checkpoint: Checkpoint, format_name: str, missing: list[str], extra: list[str], reshaped: list[str]
) -> CheckpointError:
    found = []
    for what, keys in (("missing", missing), ("left over", extra), ("of another shape", reshaped)):
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            found.append(f"{what}: {', '.join(keys[:_SHOWN])}{more}")
    fix = "take the file anew, or name the format that it has"
    if missing and extra:
        fix = f"{missing[0]}: {nearest(missing[0], extra)}"
    return CheckpointError(f"does not have the tensors of a {format_name} model", field=checkpoint.source,
                           found="; ".join(found), fix=fix)  # fmt: skip
