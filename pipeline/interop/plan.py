"""Plan of an import: origin of every tensor of a model, and account of every name of the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from foundation.errors import CheckpointError, nearest
from pipeline.interop.checkpoint import Checkpoint

_SHOWN = 5
_AGAIN = "copy or download the file again"
_PASSED_OVER = "weights of the last step; averages are used instead"


@dataclass(frozen=True)
class Origin:
    """Source of a tensor of the model.

    Attributes:
        keys: names in the checkpoint.
        make: tensors of ``keys`` => ours; must also work on meta tensors, for the shape.
        passed_over: required names that ``keys`` replace.
    """

    keys: tuple[str, ...]
    make: Callable[..., torch.Tensor] = torch.Tensor.detach
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Names left out on purpose.

    Attributes:
        pattern: regular expression for the start of a name.
        reason: text for the summary.
    """

    pattern: str
    reason: str


@dataclass(frozen=True)
class Account:
    """Use of every name of a checkpoint.

    Attributes:
        used: names of origins.
        ignored: reason -> names.
    """

    used: tuple[str, ...]
    ignored: Mapping[str, tuple[str, ...]]

    def lines(self) -> list[str]:
        """Format a line for the used tensors and one for each reason to ignore others."""
        left_out = [f"{len(keys)} left out ({reason}): {_some(keys)}" for reason, keys in self.ignored.items()]
        return [f"{len(self.used)} tensors used", *left_out]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Result of an importer, from names and shapes alone.

    Attributes:
        checkpoint: the part of the file that holds the model.
        model: our model on torch's meta device.
        origins: one entry for each tensor of the model's state dict.
        rules: names left out.
        notes: facts and assumptions for the summary.
    """

    checkpoint: Checkpoint
    model: nn.Module
    origins: Mapping[str, Origin]
    rules: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = ()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Fill an empty folder with the loaded model."""
        raise NotImplementedError


def account_for(plan: Plan, format_name: str) -> Account:
    """Require an origin for every tensor of the model, and a use or a rule for every name of the checkpoint.

    Raises:
        CheckpointError: names missing tensors, tensors left over, and tensors of another shape.
    """
    own, checkpoint = plan.model.state_dict(), plan.checkpoint
    assert own.keys() == plan.origins.keys(), sorted(own.keys() ^ plan.origins.keys())
    wanted = dict.fromkeys(key for origin in plan.origins.values() for key in origin.keys)
    passed_over = {key for origin in plan.origins.values() for key in origin.passed_over}
    missing = [key for key in (*wanted, *passed_over) if key not in checkpoint.tensors]
    shapes = {} if missing else _shapes(plan)
    reshaped = [
        f"{' + '.join(plan.origins[name].keys)} makes {shape}, not {tuple(own[name].shape)}"
        for name, shape in shapes.items()
        if shape != tuple(own[name].shape)
    ]
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
    """Load the file's values into the plan's model, float32, in evaluation mode.

    Raises:
        CheckpointError: a value is not finite, or data is missing.
    """
    state, checkpoint = {}, plan.checkpoint
    for name, origin in plan.origins.items():
        value = origin.make(*(checkpoint.tensors[key].read().float() for key in origin.keys)).float().clone()
        if not bool(value.isfinite().all()):
            found = " + ".join(origin.keys)
            raise checkpoint.error("holds values that are not finite", found=found, fix=_AGAIN)
        state[name] = value.contiguous()
    plan.model.load_state_dict(state, assign=True)
    return plan.model.eval()


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
            fix = str(error).splitlines()[0][:200]
            raise checkpoint.error("has tensors that do not fit together", found=found, fix=fix) from error
    return shapes


def _misfit(
    checkpoint: Checkpoint, format_name: str, missing: list[str], extra: list[str], reshaped: list[str]
) -> CheckpointError:
    kinds = (("missing", missing), ("left over", extra), ("of another shape", reshaped))
    found = "; ".join(f"{what}: {_some(keys)}" for what, keys in kinds if keys)
    fix = f"{missing[0]}: {nearest(missing[0], extra)}" if missing and extra else f"{_AGAIN}, or give its format"
    return checkpoint.error(f"does not have the tensors of a {format_name} model", found=found, fix=fix)


def _some(keys: Sequence[str]) -> str:
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more}"
