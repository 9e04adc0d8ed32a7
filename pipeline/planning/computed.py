"""Speed of a recipe's parts on a named machine, computed from counted work; the counterpart of ``measure.py``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from foundation.config_fields import replaced
from pipeline.planning.machines import SHARE_OF_BANDWIDTH, NamedMachine, seconds
from pipeline.planning.measure import PriorSpeed, TokenizerSpeed
from pipeline.planning.memory import Stage, code_layout, step_memory, without_memory
from pipeline.planning.trace import Trace
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel

_COUNTED, _SAMPLED = 32, 8
"""images that are encoded or scored at once; images that are sampled at once"""
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
