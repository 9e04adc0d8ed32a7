"""Cost of a recipe before it runs: parameters, FLOPs, tokens, compression, hours on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foundation.training.config import FitConfig
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.losses.vgg16 import RANDOM
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask
from stage2_prior.config import PriorTraining
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorTask

_MEASURED_FLOPS = {"cpu": 2e11, "cuda": 2e13}  # FLOPs of a timed forward pass, about a second
_TIMED_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """Table of quantities.

    Attributes:
        rows: (quantity, value) as text.
    """

    rows: list[tuple[str, str]]

    def text(self) -> str:
        """Format the table."""
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in self.rows)


def estimate(recipe: Recipe, device: torch.device) -> Estimate:
    """Build both models with random weights, count, and time a few training steps on noise.

    VGG16 has random weights too, so an estimate downloads nothing.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device.type == "cpu")
    stage, seed = recipe.tokenizer, recipe.seed
    training = replace(stage.training, perceptual=replace(stage.training.perceptual, vgg_weights=RANDOM))
    objective = Objective(training, recipe.data.preprocess, accelerator, seed=seed)
    tokenizer = TokenizerModel(stage.model, recipe.data.preprocess).to(device)
    rows = _tokenizer_rows(tokenizer)
    task = TokenizerTask(tokenizer, training, objective, None, accelerator, seed=seed)
    seconds, steps = _tokenizer_step_seconds(recipe, task), stage.training.fit.steps
    rows.append(("training the tokenizer, here", _duration(steps * seconds, steps, seconds)))
    if tokenizer.is_discrete:
        prior = PriorModel(recipe.prior.model, tokenizer.layout).to(device)
        of_prior = recipe.prior.training
        rows += _prior_rows(prior, of_prior)
        prior_task = PriorTask(prior, of_prior, None, accelerator)
        seconds, steps = prior_step_seconds(prior_task, of_prior.fit), of_prior.fit.steps
        rows.append(("training the prior, here", _duration(steps * seconds, steps, seconds)))
    return Estimate(rows)


def _tokenizer_rows(tokenizer: TokenizerModel) -> list[tuple[str, str]]:
    preprocess = tokenizer.preprocess
    image = torch.zeros(1, preprocess.n_channels, preprocess.height, preprocess.width, device=_device(tokenizer))
    encode = _flops(lambda: tokenizer.encode(image))
    codes = tokenizer.encode(image)
    decode = _flops(lambda: tokenizer.decode(codes))
    values = image.numel()
    rows = [("image", f"{preprocess.height} x {preprocess.width} x {preprocess.n_channels} = {values:,} values")]
    if tokenizer.is_discrete:
        slots = tokenizer.layout.slots
        n_codes = sum(slot.n_codes for slot in slots)
        bits = sum(slot.n_codes * math.log2(slot.codebook_size) for slot in slots)
        grids = ", ".join(" x ".join(map(str, level.shape)) for level in tokenizer.levels)
        rows.append(("tokens per image", f"{n_codes:,} ({grids})"))
        rows.append(("codebook", ", ".join(f"{slot.codebook_size:,}" for slot in slots)))
        rows.append(("compression, values", f"{values / n_codes:,.1f}x"))
        rows.append(("compression, bits", f"{values * 8 / bits:,.1f}x ({values * 8:,} to {bits:,.0f})"))
    else:
        rows.append(("latent values per image", f"{codes.numel():,} ({' x '.join(map(str, codes.shape[1:]))})"))
        rows.append(("compression, values", f"{values / codes.numel():,.1f}x"))
    parts = ("encoder", "bottleneck", "decoder")
    counts = ", ".join(f"{name} {_parameters(getattr(tokenizer, name)) / 1e6:.2f}" for name in parts)
    rows.append(("tokenizer parameters", f"{_parameters(tokenizer) / 1e6:.2f} million ({counts})"))
    rows.append(("tokenizer FLOPs per image", f"encode {encode / 1e9:.3f}, decode {decode / 1e9:.3f} billion"))
    return rows


def _prior_rows(prior: PriorModel, training: PriorTraining) -> list[tuple[str, str]]:
    forward = _flops_of_one_image(prior) / prior.n_codes
    n_bytes = sum(each.numel() * each.element_size() for each in prior.parameters())
    averaged = training.average_decay > 0
    held = "weights, gradients, moments, average" if averaged else "weights, gradients, moments"
    copies = 5 if averaged else 4  # AdamW has two moments
    n_codes = training.fit.batch_size * prior.n_codes
    parts: dict[str, list[nn.Module]] = {
        "embeddings": [m for m in prior.children() if isinstance(m, nn.Embedding)],
        "blocks": [prior.blocks],
        "head": [prior.head],
    }
    counts = ", ".join(f"{name} {sum(map(_parameters, each)) / 1e6:.2f}" for name, each in parts.items())
    return [
        ("prior parameters", f"{_parameters(prior) / 1e6:.2f} million ({counts})"),
        ("prior FLOPs per token", f"forward {forward / 1e6:,.2f}, training {3 * forward / 1e6:,.2f} million"),
        ("prior FLOPs in training", f"{3 * forward * n_codes * training.fit.steps:.3g} ({n_codes:,} tokens a step)"),
        ("prior bytes", f"{_size(n_bytes)} on disk; {_size(copies * n_bytes)} in training ({held}), plus activations"),
    ]


def _tokenizer_step_seconds(recipe: Recipe, task: TokenizerTask) -> float:
    """Seconds of an optimizer step at the recipe's batch size, with the adversary if any."""
    training, model = recipe.tokenizer.training, task.model
    preprocess = model.preprocess
    shape = (preprocess.n_channels, preprocess.height, preprocess.width)
    flops = _flops(lambda: model(torch.zeros(1, *shape, device=_device(model))))
    batch = _timed_batch(model, flops, training.fit.batch_size)
    images = torch.rand(batch, *shape, device=_device(model)) * 2 - 1
    seconds = _seconds(lambda: task.train_step({"images": images}, training.fit.steps - 1))
    return seconds * training.fit.batch_size / batch


def prior_step_seconds(task: PriorTask, fit: FitConfig, *, n_steps: int = _TIMED_STEPS) -> float:
    """Seconds of an optimizer step of a disposable task.

    A large batch is timed in part and scaled in proportion.

    Args:
        task: new; trains on zeros.
        fit: gives the batch size and the step number, its last.
        n_steps: timed steps, after one warm-up step.
    """
    model, device = task.model, _device(task.model)
    batch = _timed_batch(model, _flops_of_one_image(model), fit.batch_size)
    tokens = torch.zeros(batch, model.n_codes, dtype=torch.int64, device=device)
    labels = torch.full((batch,), model.null_class, device=device)
    examples = {"tokens": tokens, "labels": labels}
    return _seconds(lambda: task.train_step(examples, fit.steps - 1), n_steps) * fit.batch_size / batch


def _flops_of_one_image(prior: PriorModel) -> float:
    """FLOPs of a forward pass over all codes of an image."""
    tokens = torch.zeros(1, prior.n_codes, dtype=torch.int64, device=_device(prior))
    labels = torch.full((1,), prior.null_class, device=tokens.device)
    return _flops(lambda: prior(tokens, labels))


def _timed_batch(model: nn.Module, flops_of_one: float, batch_size: int) -> int:
    flops = _MEASURED_FLOPS.get(_device(model).type, _MEASURED_FLOPS["cpu"])
    return max(1, min(batch_size, int(flops / max(flops_of_one, 1))))


def _seconds(step: Callable[[], object], n_steps: int = _TIMED_STEPS) -> float:
    step()
    _wait()
    began = time.perf_counter()
    for _ in range(n_steps):
        step()
    _wait()
    return (time.perf_counter() - began) / n_steps


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _flops(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


def _parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _duration(total: float, steps: int, seconds: float) -> str:
    shown = f"{total / 3600:,.1f} hours" if total >= 5400 else f"{total / 60:,.1f} minutes"
    return f"{shown} ({steps:,} steps of {seconds:.3g} s)"
