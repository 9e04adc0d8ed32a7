"""Peak memory of a training step of either stage, by part, counted without running it.

The real task takes one step on tensors without memory (``trace.py``): on a CPU with the CPU's kernels, on a GPU with
the plain formulas (``gpu_rules.py``). What torch's kernels and the process itself take on top is a measured constant.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
from torch import nn

from foundation.codes.spec import CodeSpec
from foundation.config_fields import replaced
from foundation.training.muon import Muon
from pipeline.planning.gpu_rules import as_on_gpu
from pipeline.planning.trace import BACKWARD, Trace, Work
from pipeline.runs.precision import PERCEPTUAL, PRIOR, TOKENIZER
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.quantizers import fsq
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorTask

Stage = Literal["tokenizer", "prior"]
Kind = Literal["cpu", "gpu"]
STATE = ("weights", "gradients", "moments", "average")
"""parts that do not depend on the batch"""
_COPIES = {"tokenizer": 3, "prior": 1}
"""tensors of a batch's size that exist through all passes: images, reconstructions and their gradients; codes"""


@dataclass(frozen=True)
class StepMemory:
    """A training step, counted.

    Attributes:
        batch: examples of one optimizer step that were counted.
        micro_batch: examples of one forward pass.
        at_peak: bytes of each part when most bytes existed.
        kept: most bytes that the activations of each part held at any time.
        work: operations of the step.
        trained: bytes of the weights that are trained.
    """

    batch: int
    micro_batch: int
    at_peak: Mapping[str, int]
    kept: Mapping[str, int]
    work: tuple[Work, ...]
    trained: int

    @property
    def peak(self) -> int:
        """Bytes of all tensors when most of them existed."""
        return sum(self.at_peak.values())

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: weights, moments and average."""
        return self.trained + sum(self.at_peak.get(name, 0) for name in ("moments", "average"))


def step_memory(
    recipe: Recipe,
    stage: Stage,
    kind: Kind,
    micro_batch: int | None = None,
    *,
    n_processes: int = 1,
    layout: CodeSpec | None = None,
) -> StepMemory:
    """Count a training step of one process.

    Args:
        recipe: its precisions that are ``auto`` are bf16 on a GPU, float32 on a CPU.
        stage: of which training.
        kind: whose kernels compute.
        micro_batch: examples of one forward pass; None takes the recipe's. Of a step of several passes two are counted,
            which have the step's peak.
        n_processes: that share a batch; each holds all weights.
        layout: of the codes; None takes what the recipe's tokenizer makes.
    """
    recipe = replaced(recipe, _open_precisions(recipe, "bf16" if kind == "gpu" else "float32"))
    training = getattr(recipe, stage).training
    batch = max(1, training.fit.batch_size // n_processes)
    micro = min(batch, micro_batch or training.micro_batch_size or batch)
    n_examples = min(batch, 2 * micro)
    fit = replace(training.fit, batch_size=n_examples)
    training = replace(training, fit=fit, micro_batch_size=micro, compile=False)
    with without_memory(kind) as (trace, device):
        task = _TASKS[stage](recipe, training, device, trace, layout)
        trained = _name_state(task, trace, stage)
        trace.work.clear()
        trace.restart()
        with trace.naming("batch"):
            examples, step = _EXAMPLES[stage](task, n_examples, device)
        with trace.naming("loss"):
            task.train_step(examples, step)
        del examples
        kept = {name: n for name, n in trace.largest.items() if name not in (*STATE, BACKWARD)}
        trace.at_peak["batch"] += (batch - n_examples) * _COPIES[stage] * kept["batch"] // n_examples
        return StepMemory(n_examples, micro, dict(+trace.at_peak), kept, tuple(trace.work), trained)


def _open_precisions(recipe: Recipe, taken: str) -> dict[str, Any]:
    return {name: taken for name in (TOKENIZER, PERCEPTUAL, PRIOR) if attrgetter(name)(recipe) == "auto"}


@contextlib.contextmanager
def without_memory(kind: Kind) -> Iterator[tuple[Trace, torch.device]]:
    """Tensors that are made in here have no memory; counts them."""
    with contextlib.ExitStack() as stack:
        device = torch.device("cpu" if kind == "cpu" else "meta")
        if kind == "cpu":
            from torch._subclasses.fake_tensor import FakeTensorMode

            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        else:
            stack.enter_context(as_on_gpu())
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(mock.patch.object(nn.Module, "to", lambda module, *_, **__: module))  # it is there already
        stack.enter_context(mock.patch.object(fsq, "_columns", fsq._columns.__wrapped__))  # its cache outlives this
        stack.enter_context(torch.random.fork_rng(devices=[]))
        trace = stack.enter_context(Trace())
        stack.enter_context(torch.device(device))
        yield trace, device


def _tokenizer_task(
    recipe: Recipe, training: Any, device: torch.device, trace: Trace, _: CodeSpec | None
) -> TokenizerTask:
    training = training.without_files().at_largest()
    where, preprocess = _process(device), recipe.data.preprocess
    with trace.naming("weights"):
        model = TokenizerModel(recipe.tokenizer.model, preprocess)
        objective = Objective(training, model, where, seed=recipe.seed)
        task = TokenizerTask(model, training, objective, None, where, seed=recipe.seed)
    parts = {"encoder": model.encoder, "bottleneck": model.bottleneck, "decoder": model.decoder}
    for name, module in {**parts, **objective.networks()}.items():
        trace.follow(module, name)
    return task


def _prior_task(
    recipe: Recipe, training: Any, device: torch.device, trace: Trace, layout: CodeSpec | None
) -> PriorTask:
    with trace.naming("weights"):
        layout = layout or code_layout(recipe)
        model = PriorModel(recipe.prior.model, layout)
        vectors_VC = code_vectors_like(recipe, layout)
        task = PriorTask(model, training, None, _process(device), code_vectors_VC=vectors_VC)
    for name, module in model.named_children():
        if name != "blocks":
            trace.follow(module, "embeddings" if isinstance(module, nn.Embedding) or name == "dropout" else "head")
    for block in model.blocks:
        trace.follow(block, "blocks")
    return task


def _tokenizer_examples(task: TokenizerTask, n: int, device: torch.device) -> tuple[dict[str, torch.Tensor], int]:
    p = task.model.preprocess
    images = torch.zeros(n, p.n_channels, p.height, p.width, device=device)
    return {"images": images}, task.learner.n_steps - 1


def _prior_examples(task: PriorTask, n: int, device: torch.device) -> tuple[dict[str, torch.Tensor], int]:
    tokens = torch.zeros(n, task.model.n_codes, dtype=torch.int64, device=device)
    labels = torch.zeros(n, dtype=torch.int64, device=device)
    with torch.utils._python_dispatch._disable_current_modes():
        positions = torch.arange(n, device="cpu")
    return {"tokens": tokens, "labels": labels, "positions": positions}, 0


_TASKS: dict[str, Any] = {"tokenizer": _tokenizer_task, "prior": _prior_task}
_EXAMPLES: dict[str, Any] = {"tokenizer": _tokenizer_examples, "prior": _prior_examples}


def code_layout(recipe: Recipe) -> CodeSpec:
    """Of the codes that the recipe's tokenizer makes, without a fingerprint and classes."""
    with torch.device("meta"):
        return TokenizerModel(recipe.tokenizer.model, recipe.data.preprocess).layout


def code_vectors_like(recipe: Recipe, layout: CodeSpec) -> torch.Tensor | None:
    """Zeros of the shape of the tokenizer's code vectors, (V, C); None where training the prior needs none."""
    regularizer = recipe.prior.training.regularizer
    if regularizer is None or not regularizer.aligns:
        return None
    return torch.zeros(layout.codebook_size, recipe.tokenizer.model.quantizer.width)


def _process(device: torch.device) -> Any:
    """What tasks ask of accelerate's ``Accelerator``, of a training of one process."""
    return SimpleNamespace(device=device, num_processes=1, process_index=0, is_main_process=True)


def _name_state(task: Any, trace: Trace, stage: Stage) -> int:
    """Name averages; give the optimizers their moments; name gradients when they come; returns bytes of weights."""
    learners, n_bytes = [task.learner], 0
    if stage == "tokenizer":
        learners += task.objective.learners().values()
    for learner in learners:
        if learner.average.decay > 0:
            for average in learner.average.model.parameters():
                trace.relabel(average, "average")
        for optimizer in learner.optimizers:
            for each in (each for group in optimizer.param_groups for each in group["params"]):
                n_bytes += each.numel() * each.element_size()
                _name_moments(optimizer, each, trace)
                each.register_post_accumulate_grad_hook(functools.partial(_name_gradient, trace))
    return n_bytes


def _name_moments(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, trace: Trace) -> None:
    """Give an optimizer its state of a parameter, as its first step would."""
    names = ("momentum",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
    with trace.naming("moments"):
        optimizer.state[parameter] = {name: torch.zeros_like(parameter) for name in names}
    if not isinstance(optimizer, Muon):
        with trace.naming("weights"):
            optimizer.state[parameter]["step"] = torch.zeros(())


def _name_gradient(trace: Trace, parameter: torch.Tensor) -> None:
    if parameter.grad is not None:
        trace.relabel(parameter.grad, "gradients")
