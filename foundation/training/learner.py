"""Learner: a model, its optimizer and the exponential moving average of its weights, which is what users load.

It is the part of a training step that both stages share.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from foundation.hardware import missing_compiler
from foundation.training.config import OptimConfig, Precision
from foundation.training.optim import StepGuard, adamw, known_skipped, learning_rate, muon, reads_freely
from foundation.training.parallel import (
    full_tensor,
    gathered,
    is_sharded,
    keeping_tags,
    local_shard,
    replicated,
    shard,
    sharded_like,
    sharding_asked,
    unsynchronised,
)
from foundation.training.precision import settled

if TYPE_CHECKING:
    from accelerate import Accelerator


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Update:
    """Result of a step.

    Attributes:
        taken: a boolean on the device, false if the gradient was not finite: nothing changed then, on any process.
        metrics: scalars to log.
    """

    taken: torch.Tensor
    metrics: dict[str, torch.Tensor | float]


class Learner:
    """Prepares a model for training and applies gradients to it.

    Args:
        model: the plain module, equal on every process; moved to the accelerator's device.
        optim: optimizer and learning rate.
        n_steps: length of the learning-rate schedule.
        average_decay: of the weight average; 0 keeps none.
        precision: arithmetic of forward passes under ``autocast``; auto takes the faster one.
        accelerator: devices and processes.
        objective: a module that holds ``model`` and computes its loss, to be called in training; None calls the model.
            Parameters of its own are trained too, and are in the checkpoint, but neither averaged nor exported.
        blocks: the parts of the model that FSDP2 gathers one by one, if accelerate was launched with it; without them
            the model is replicated on every process.

    Attributes:
        model: the plain module; its parameters are sharded under FSDP2, with the same names.
        wrapped: the module to call in training, synchronised over processes.
        average: the average of the weights.
        is_sharded: whether processes share the weights.
        objective: what was given as such, or the model.
        optimizer: AdamW, of all trained parameters or those that are not Muon's.
        muon: Muon, of the hidden matrices; None where AdamW trains them.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        n_steps: int,
        *,
        average_decay: float,
        precision: Precision,
        accelerator: Accelerator,
        objective: nn.Module | None = None,
        blocks: Sequence[nn.Module] = (),
    ) -> None:
        self.optim, self.n_steps, self.accelerator = optim, n_steps, accelerator
        self.precision = settled(precision, accelerator.device)
        self.model, root = model, model if objective is None else objective
        self.is_sharded = len(blocks) > 0 and sharding_asked(accelerator)
        if self.is_sharded:
            shell = copy_with(model, on_meta)
            shard(root, blocks, accelerator, self.precision)
            self.average, self.wrapped = WeightAverage(model, average_decay, shell), root
        else:
            with keeping_tags(root):  # not every device can take the memory of a parameter
                root.to(accelerator.device)
            self.average, self.wrapped = WeightAverage(model, average_decay), replicated(root, accelerator)
        self.objective = root
        self.optimizer = adamw(root, optim)
        arithmetic = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.muon = muon(root, optim, arithmetic)
        self.guard = StepGuard()

    def autocast(self) -> torch.autocast:
        """The context of forward passes: bf16 for operations that are safe in it, with that precision."""
        lower = self.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=lower)

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """The context of one of several forward and backward passes of a step: only the last synchronises processes."""
        return contextlib.nullcontext() if last else unsynchronised(self.wrapped)

    def apply(self, loss: torch.Tensor, step: int) -> Update:
        """Backward and ``take_step``; for a step with one forward."""
        loss.backward()
        return self.take_step(loss.detach(), step)

    def rewrap(self) -> None:
        """Synchronise processes over the parameters that are trained now, after some were frozen."""
        self.wrapped = replicated(self.model, self.accelerator)

    def take_step(self, loss: torch.Tensor, step: int, offered: torch.Tensor | None = None) -> Update:
        """Clip the gradient and, if it is finite, take one optimizer step; on a GPU the CPU does not wait for it.

        The gradient is that of all processes, so they decide alike. Afterwards the caller moves the average with
        ``follow``, as the last change of the model.

        Args:
            loss: for the log.
            step: optimizer step, from 0.
            offered: see ``StepGuard.allows``.

        Raises:
            TrainingError: too many steps were not finite, see ``StepGuard``.
        """
        rate = self._set_rates(step)
        norm = full_tensor(nn.utils.clip_grad_norm_(self.objective.parameters(), self.optim.clip_norm or math.inf))
        taken = self.guard.allows(norm, offered)
        for optimizer in self.optimizers:
            if not reads_freely(taken.device):
                optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]  # its kernel looks at it
            if not known_skipped(taken):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, torch.Tensor | float] = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "skipped_steps": self.guard.skipped,
        }
        return Update(taken, metrics)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW, and Muon if there is one."""
        return [self.optimizer] if self.muon is None else [self.optimizer, self.muon]

    def _set_rates(self, step: int) -> float:
        """Give the optimizers their learning rates; returns AdamW's."""
        rate = learning_rate(self.optim, step, self.n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.muon is not None:
            for group in self.muon.param_groups:
                group["lr"] = learning_rate(self.optim.of_matrices, step, self.n_steps)
        return rate

    def follow(self, taken: torch.Tensor, step: int) -> None:
        """Move the average after optimizer step ``step``, if it was taken."""
        if not known_skipped(taken):
            self.average.update(self.model, step, taken)

    def settle(self, n_skipped: float) -> None:
        """Count the steps whose outcome waited on the device, given the metric ``skipped_steps`` of the last one.

        Raises:
            TrainingError: too many were not finite, see ``StepGuard``.
        """
        self.guard.settle(n_skipped)

    def state_dict(self) -> dict[str, Any]:
        """Model, average, optimizer and guard; every process calls it, and the main process's is complete.

        Names and shapes are the plain model's, for any number of processes.
        """
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer_state(),
            "guard": self.guard.state_dict(),
        }
        others = self._others()
        if others:
            state["objective_parameters"] = others
        return gathered(state, keep=self.accelerator.is_main_process)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``, of any number of processes; every process calls it with the complete one."""
        load_full_tensors(self.model, state["model"])
        for name, each in self._others().items():
            local_shard(each).copy_(local_shard(sharded_like(state["objective_parameters"][name], each)))
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(_shared_out(self.optimizer, state["optimizer"]))
        if self.muon is not None:
            self.muon.load_state_dict(_shared_out(self.muon, state["optimizer"]["muon"]))
        self.guard.load_state_dict(state["guard"])

    def _others(self) -> dict[str, torch.Tensor]:
        """Parameters of the objective that are not the model's."""
        own = {id(each) for each in self.model.parameters()}
        return {name: each.detach() for name, each in self.objective.named_parameters() if id(each) not in own}

    def _optimizer_state(self) -> dict[str, Any]:
        """AdamW's state, with Muon's in it if there is one."""
        state = self.optimizer.state_dict()
        return state if self.muon is None else {**state, "muon": self.muon.state_dict()}


def _shared_out(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's saved state with each moment sharded like its parameter."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    moments = {
        i: {name: sharded_like(value, parameters[i]) for name, value in own.items()}
        for i, own in saved["state"].items()
    }
    return {"param_groups": saved["param_groups"], "state": moments}


class WeightAverage:
    """Averages parameters in float32 and copies buffers.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that the initial
    weights have little influence. With a decay of 0 the average is the weights themselves, in the same memory.

    Args:
        model: the module whose weights are averaged; its parameters may be sharded.
        decay: share of the old average kept at each step; 0 keeps the last weights only.
        shell: for sharded parameters, ``copy_with(model, on_meta)`` from before they were; else None.

    Attributes:
        model: a module with the averaged weights, in evaluation mode, sharded like the one it follows. Parameters that
            are not trained are those of that one, in the same memory.
    """

    def __init__(self, model: nn.Module, decay: float, shell: nn.Module | None = None) -> None:
        self.decay = decay
        keep: Callable[[torch.Tensor], torch.Tensor] = torch.clone if decay > 0 else lambda each: each
        self._frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
        if shell is None:
            self.model = copy_with(model, keep, shared=self._frozen)
        else:
            shell.load_state_dict({name: keep(each) for name, each in model.state_dict().items()}, assign=True)
            self.model = shell

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, taken: torch.Tensor | None = None) -> None:
        """Move the average towards ``model`` after optimizer step ``step`` (counted from 0).

        Args:
            taken: whether the step was taken, decided on the device; None or a boolean that is known for yes.
        """
        decided = None if taken is None or reads_freely(taken.device) else taken
        if self.decay > 0:
            decay = min(self.decay, (1 + step) / (10 + step))
            averages, weights = (
                [local_shard(each.detach()) for name, each in of.named_parameters() if name not in self._frozen]
                for of in (self.model, model)
            )
            share = 1.0 - decay
            if decided is None:
                torch._foreach_lerp_(averages, weights, share)
            else:
                torch._foreach_lerp_(averages, weights, [share * decided] * len(weights))
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs if decided is None else torch.where(decided, theirs, mine))

    def exported(self) -> nn.Module:
        """A plain module with the complete averaged weights; every process calls it.

        It is ``model`` itself unless that is sharded: then a copy, joined from all processes.
        """
        if any(is_sharded(each) for each in self.model.parameters()):
            return copy_with(self.model, full_tensor)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """The averages by name; nothing where they are the weights themselves."""
        if self.decay == 0:
            return {}
        return {name: value for name, value in self.model.state_dict().items() if name not in self._frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``, also into a sharded model."""
        if self.decay > 0:
            own = self.model.state_dict()
            load_full_tensors(self.model, {**{name: own[name] for name in self._frozen}, **state})


def micro_batches(rows: torch.Tensor, size: int | None) -> Sequence[torch.Tensor]:
    """The rows in as few parts of at most ``size`` as there can be, almost equally long; None takes all at once."""
    return rows.tensor_split(-(-len(rows) // (size or len(rows))))


def compiles(accelerator: Accelerator, model: str) -> bool:
    """Whether blocks can be compiled for the device; says why not, and that the model trains without."""
    missing = missing_compiler(accelerator.device)
    if missing is not None and accelerator.is_main_process:
        print(f"{model}: not compiled, which is slower and changes nothing else: {missing}", file=sys.stderr)
    return missing is None


def copy_with(module: M, value: Callable[[torch.Tensor], torch.Tensor], shared: Collection[str] = ()) -> M:
    """A copy in evaluation mode whose parameters and buffers are ``value`` of the original ones, without gradients.

    What ``value`` returns is held as it is: the identity shares memory with the original, ``torch.clone`` does not.
    The parameters named in ``shared`` share memory in any case.
    """
    new: dict[int, torch.Tensor] = {id(each): value(each) for each in module.buffers()}
    for name, each in module.named_parameters():
        new[id(each)] = nn.Parameter(each.detach() if name in shared else value(each.detach()), requires_grad=False)
    return copy.deepcopy(module, new).eval()  # deepcopy looks up what has been copied already


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """Its shape and type without memory."""
    return torch.empty_like(tensor, device="meta")


def load_full_tensors(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load full tensors into a model whose parameters may be sharded; every process calls it."""
    own = model.state_dict()
    model.load_state_dict({name: sharded_like(value, own.get(name, value)) for name, value in state.items()})
