"""Whether a training fits the memory of a device; if not, the largest micro-batch that does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from foundation.codes.spec import CodeSpec
from foundation.config_fields import replaced
from foundation.errors import ConfigError, TesseraError, one_line
from foundation.hardware import free_memory
from pipeline.planning.memory import STATE, Kind, Stage, StepMemory, code_layout, step_memory, without_memory
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel

T = TypeVar("T")
_ON_TOP = {"cpu": (1.4, 40 << 20), "gpu": (1.1, 700 << 20)}
"""factor of activations and temporaries, for memory between blocks and inside of kernels; and bytes of the libraries.
On a CPU measured, with glibc and oneDNN (docs/RESULTS.md); on a GPU assumed: the driver's context, cuDNN, cuBLAS"""
ERROR = 0.15
"""share by which estimate and peak differ at most"""
_PER_PIXEL = 8192
"""bytes at most of LPIPS and discriminator, for a pixel of an image"""


def needed(memory: StepMemory, kind: Kind) -> int:
    """Bytes of a training step on the device, beyond what a process takes that has imported torch.

    On a CPU with the copy of the state that a checkpoint is written from.
    """
    factor, libraries = _ON_TOP[kind]
    state = sum(memory.at_peak.get(name, 0) for name in STATE)
    copied = memory.checkpoint if kind == "cpu" else 0
    return int(state + factor * (memory.peak - state)) + libraries + copied


@dataclass(frozen=True)
class PassMemory:
    """Memory of a step as a function of the examples of a forward pass: affine once activations dominate it.

    Attributes:
        constant: bytes.
        of_one: bytes of one example.
        batch: examples of a step, which no pass exceeds.
    """

    constant: float
    of_one: float
    batch: int

    def largest(self, available: int) -> int:
        """The most examples of a forward pass that fit ``available`` bytes; 0 if not one fits."""
        return max(0, min(self.batch, int((available - self.constant) / self.of_one)))


def pass_memory(
    recipe: Recipe, stage: Stage, kind: Kind, *, n_processes: int = 1, layout: CodeSpec | None = None
) -> PassMemory:
    """Count steps of several passes of two sizes; ``layout``: see ``step_memory``."""
    batch = max(1, getattr(recipe, stage).training.fit.batch_size // n_processes)
    small, large = (4, 8) if batch >= 8 else (1, 2)
    several = max(batch, 4 * large) * n_processes  # examples: never a single pass
    recipe = replaced(recipe, {f"{stage}.training.fit.batch_size": several})
    count = partial(step_memory, recipe, stage, kind, n_processes=n_processes, layout=layout)
    counted = [needed(count(n), kind) for n in (small, large)]
    of_one = (counted[1] - counted[0]) / (large - small)
    return PassMemory(counted[0] - of_one * small, of_one, batch)


def require_fits(
    recipe: Recipe,
    device: torch.device,
    stages: Collection[str] = ("tokenizer", "prior"),
    *,
    n_processes: int = 1,
    layout: CodeSpec | None = None,
) -> None:
    """Refuse a recipe whose training exceeds the device's free memory by more than the estimate's error; else warn.

    A stage that obviously fits is not counted.

    Args:
        recipe: with its precisions resolved.
        device: where it trains.
        stages: to look at, of those that the recipe trains; the prior of codes of one's own, if ``layout`` is given.
        n_processes: that share each batch.
        layout: of the codes; None takes what the recipe's tokenizer makes.

    Raises:
        ConfigError: naming the field of the micro-batch, what is needed and free, and what fits.
    """
    available = device_memory(device)
    kind: Kind = "cpu" if device.type == "cpu" else "gpu"
    trained: list[Stage] = trained_stages(recipe) if layout is None else ["prior"]
    for stage in (each for each in trained if each in stages):
        bound = if_countable(stage, partial(upper_bound, recipe, stage, n_processes, layout))
        if bound is None or bound < available:
            continue
        counted = if_countable(stage, partial(step_memory, recipe, stage, kind, n_processes=n_processes, layout=layout))
        if counted is None:
            continue
        total = needed(counted, kind)
        if total > available * (1 + ERROR):
            raise _refusal(recipe, stage, kind, total, available, n_processes, layout)
        if total > available:
            what = f"a step of the {stage} takes about {gigabytes(total)}, and {gigabytes(available)} are free"
            print(f"memory: {what}: it may not fit", file=sys.stderr)


def if_countable(stage: Stage, count: Callable[[], T]) -> T | None:
    """What ``count`` returns; None, and a line on stderr, where a plugin's networks need tensors with values."""
    try:
        return count()
    except TesseraError:
        raise
    except Exception as error:  # foreign code
        print(f"memory: of the {stage} it is not known: {one_line(error)}", file=sys.stderr)
        return None


def trained_stages(recipe: Recipe) -> list[Stage]:
    """The stages that a run of the recipe trains, whose sizes the recipe tells."""
    if recipe.codes is not None:  # their shape is known when they have been read
        return []
    first: list[Stage] = [] if recipe.tokenizer.pretrained is not None else ["tokenizer"]
    return [*first, "prior"]


def device_memory(device: torch.device) -> int:
    """Free bytes on the device."""
    if device.type == "cpu":
        return free_memory()
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return sys.maxsize


def upper_bound(recipe: Recipe, stage: Stage, n_processes: int = 1, layout: CodeSpec | None = None) -> int:
    """Bytes that a step takes at most, from one forward pass of one example: cheap, and several times too large."""
    training, preprocess = getattr(recipe, stage).training, recipe.data.preprocess
    batch = max(1, training.fit.batch_size // n_processes)
    batch = min(batch, training.micro_batch_size or batch)
    with without_memory("gpu") as (trace, _), torch.no_grad():
        if stage == "tokenizer":
            model: Any = TokenizerModel(recipe.tokenizer.model, preprocess).train()
            trace.work.clear()
            images = torch.empty(1, preprocess.n_channels, preprocess.height, preprocess.width)
            model(images)
            pixels = preprocess.height * preprocess.width
            losses = training.perceptual.weight + training.adversarial.weight
            of_one = _PER_PIXEL * pixels if losses > 0 else 0
        else:
            model = PriorModel(recipe.prior.model, layout or code_layout(recipe))
            trace.work.clear()
            tokens, labels = (torch.empty(*shape, dtype=torch.int64) for shape in ((1, model.n_codes), (1,)))
            model.head(model.hidden(tokens, labels))
            of_one = 0
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    return 10 * weights + 2 * batch * (of_one + sum(each.n_bytes for each in trace.work)) + (1 << 30)


def _refusal(
    recipe: Recipe, stage: Stage, kind: Kind, total: int, available: int, n_processes: int, layout: CodeSpec | None
) -> ConfigError:
    """What to say: the micro-batch that fits, the same with checkpointing, or smaller models."""
    training = getattr(recipe, stage).training
    count = partial(pass_memory, stage=stage, kind=kind, n_processes=n_processes, layout=layout)
    micro = count(recipe).largest(available)
    fixes = []
    size = f"{stage}.training.micro_batch_size"
    if micro:
        fixes.append(f"set {size} to {micro}")
    if not training.checkpoint_blocks:
        less = replaced(recipe, {f"{stage}.training.checkpoint_blocks": True})
        checkpointed = count(less).largest(available)
        if checkpointed > micro:
            fixes.append(f"set {stage}.training.checkpoint_blocks to true and {size} to {checkpointed}")
    own = training.micro_batch_size or training.fit.batch_size
    return ConfigError(
        f"a step of the {stage} does not fit the memory",
        field=size,
        found=f"{own:,} examples in a forward pass, which take about {gigabytes(total)}",
        expected=f"up to {gigabytes(available)}, which are free",
        fix=", or ".join(fixes) or "use a smaller model, a GPU with more memory, or several GPUs",
    )


def gigabytes(n_bytes: float) -> str:
    """GB (10^9 bytes), MB below one."""
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"
