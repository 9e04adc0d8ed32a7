"""Speed of a recipe's parts on a named machine, computed from counted work; the counterpart of ``measure.py``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from foundation.codes.spec import CodeSpec
from foundation.config_fields import replaced
from foundation.training.clock import ModelWork
from pipeline.planning.machines import SHARE_OF_BANDWIDTH, NamedMachine, machine_of, seconds
from pipeline.planning.measure import PriorSpeed, TokenizerSpeed
from pipeline.planning.memory import Stage, code_layout, step_memory, without_memory
from pipeline.planning.trace import Trace
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel

_COUNTED, _SAMPLED, _STEPPED = 32, 8, 4
"""images that are encoded or scored at once; that are sampled at once; of a step whose FLOPs are counted"""
_KERNELS, _START = 12, 5e-6
"""kernels of a block for one code, and seconds to start one"""


def computed_tokenizer(recipe: Recipe, machine: NamedMachine) -> TokenizerSpeed:
    """Stage 1 on the machine."""
    step = _step(recipe, "tokenizer", machine)
    alone = {"tokenizer.training.adversarial.weight": 0.0}
    several = recipe.tokenizer.training.adversarial.weight > 0
    before = _step(replaced(recipe, alone), "tokenizer", machine) if several else step
    preprocess = recipe.data.preprocess
    with without_memory(machine.kind) as (trace, device), torch.no_grad():
        model = TokenizerModel(recipe.tokenizer.model, preprocess).eval()
        images = torch.zeros(_COUNTED, preprocess.n_channels, preprocess.height, preprocess.width, device=device)
        encode = _seconds(trace, lambda: model.encode(images), machine) / _COUNTED
        codes = model.encode(images)
        decode = _seconds(trace, lambda: model.decode(codes), machine) / _COUNTED
    return TokenizerSpeed(step, before, encode, decode, encode + decode)


def computed_prior(recipe: Recipe, machine: NamedMachine) -> PriorSpeed:
    """Stage 2 on the machine; sampling reads all weights and starts all kernels for each code of a batch."""
    step = _step(recipe, "prior", machine)
    with without_memory(machine.kind) as (trace, device), torch.no_grad():
        prior = PriorModel(recipe.prior.model, code_layout(recipe)).eval()
        tokens = torch.zeros(_COUNTED, prior.n_codes, dtype=torch.int64, device=device)
        labels = torch.zeros(_COUNTED, dtype=torch.int64, device=device)
        score = _seconds(trace, lambda: prior.nll(tokens, labels), machine) / _COUNTED
        n_bytes = sum(each.numel() * each.element_size() for each in prior.parameters())
    of_code = n_bytes / (SHARE_OF_BANDWIDTH * machine.bandwidth * 1e9) + _KERNELS * _START * len(prior.blocks)
    return PriorSpeed(step, score, of_code * prior.n_codes / _SAMPLED)


def model_work(recipe: Recipe, stage: Stage, device: torch.device, layout: CodeSpec | None = None) -> ModelWork | None:
    """FLOPs of a training step, counted without computing, and the peak of the device; None for one without a sheet.

    Args:
        recipe: with its precisions settled.
        stage: of which training.
        device: of the training.
        layout: of the prior's codes; None takes what the recipe's tokenizer makes.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    machine = machine_of(name)
    try:
        return None if machine is None else step_work(recipe, stage, machine, layout)
    except (NotImplementedError, RuntimeError):  # networks of a plugin that need real tensors
        return None


def step_work(recipe: Recipe, stage: Stage, machine: NamedMachine, layout: CodeSpec | None = None) -> ModelWork:
    """``model_work`` on a named machine."""
    training = getattr(recipe, stage).training
    flops = _flops(recipe, stage, layout)
    wide = machine.tf32 if stage == "tokenizer" else machine.float32  # convolutions take TF32 unless told otherwise
    peak = 1e12 * (machine.bf16 or machine.float32 if training.precision == "bf16" else wide)
    if stage == "prior" or training.adversarial.weight == 0:
        return ModelWork(flops, peak)
    before = _flops(replaced(recipe, {"tokenizer.training.adversarial.weight": 0.0}), stage, layout)
    return ModelWork(flops, peak, before, training.adversarial.start_step)


def _flops(recipe: Recipe, stage: Stage, layout: CodeSpec | None) -> float:
    """Of a step of all processes, in one pass and without recomputation, in proportion to a small one."""
    batch: int = getattr(recipe, stage).training.fit.batch_size
    counted = min(batch, _STEPPED)
    plain = {"fit.batch_size": counted, "micro_batch_size": None, "checkpoint_blocks": False}
    small = replaced(recipe, {f"{stage}.training.{name}": value for name, value in plain.items()})
    work = step_memory(small, stage, "gpu", layout=layout).work
    return sum(each.flops for each in work) * batch / counted


def _step(recipe: Recipe, stage: Stage, machine: NamedMachine) -> float:
    """Seconds of an optimizer step: of the examples that were counted, in proportion."""
    if machine.bf16 is None:
        recipe = replaced(recipe, {f"{stage}.training.precision": "float32"})
    counted = step_memory(recipe, stage, machine.kind)
    batch: int = getattr(recipe, stage).training.fit.batch_size
    return seconds(counted.work, machine) * batch / counted.batch


def _seconds(trace: Trace, work: Callable[[], object], machine: NamedMachine) -> float:
    trace.work.clear()
    work()
    return seconds(trace.work, machine)
