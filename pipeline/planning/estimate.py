"""Everything that a recipe costs before it runs: models, memory by part, time by part, disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foundation.errors import TesseraError
from foundation.images.image_set import open_splits
from pipeline.planning.computed import computed_prior, computed_tokenizer
from pipeline.planning.fits import device_memory, gigabytes, if_countable, needed, trained_stages
from pipeline.planning.machines import SHARE_OF_BANDWIDTH, SHARE_OF_PEAK, named_machine
from pipeline.planning.measure import PriorSpeed, TokenizerSpeed, measure_prior, measure_reading, measure_tokenizer
from pipeline.planning.memory import STATE, Kind, Stage, StepMemory, code_layout, step_memory, without_memory
from pipeline.planning.times import Counts, Speeds, n_views, run_times
from pipeline.planning.trace import BACKWARD
from pipeline.runs.duration import duration
from pipeline.runs.precision import settle_precision
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel

if TYPE_CHECKING:
    from accelerate import Accelerator

ASSUMED_IMAGES = 10_000
"""images of a recipe whose data is not there"""
_READERS = 4
_OF_ROW = 100
"""bytes of a row of a token dataset beside its codes, about: its image's name, label and view"""


@dataclass(frozen=True)
class Estimate:
    """A table in groups, and its numbers.

    Attributes:
        groups: title => rows of (quantity, value) as text.
        numbers: plain values for JSON: bytes and seconds.
    """

    groups: Mapping[str, list[tuple[str, str]]]
    numbers: Mapping[str, Any]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The rows of all groups."""
        return [row for group in self.groups.values() for row in group]

    def text(self) -> str:
        """Format the table."""
        width = max(len(name) for name, _ in self.rows)
        parts = (
            "\n".join([title, *(f"  {name:{width}}  {value}".rstrip() for name, value in rows)])
            for title, rows in self.groups.items()
        )
        return "\n\n".join(parts)


@dataclass(frozen=True)
class _Images:
    counts: Counts
    read: float
    note: str


def estimate(recipe: Recipe, accelerator: Accelerator, *, on: str | None = None, images: int | None = None) -> Estimate:
    """Count models, memory and disk; measure speeds here, or compute them for a named machine.

    VGG16 has random weights, so an estimate downloads nothing.

    Args:
        recipe: any recipe that has images.
        accelerator: the device here.
        on: a name of ``MACHINES``; None measures here.
        images: number of images; None counts the recipe's, or assumes ``ASSUMED_IMAGES`` where they are not there.

    Raises:
        ConfigError: no such machine.
    """
    machine = None if on is None else named_machine(on)
    process = 0 if machine else process_bytes()
    if machine is None:
        recipe, _ = settle_precision(recipe, accelerator.device)
    kind: Kind = machine.kind if machine else "cpu" if accelerator.device.type == "cpu" else "gpu"
    found = _images(recipe, images)
    counted = {
        stage: if_countable(stage, partial(step_memory, recipe, stage, kind)) for stage in trained_stages(recipe)
    }
    steps = {stage: memory for stage, memory in counted.items() if memory is not None}
    available = int(machine.memory * 1e9) if machine else device_memory(accelerator.device)
    tokenizer, prior = _speeds(recipe, accelerator, on)
    times = run_times(recipe, found.counts, Speeds(tokenizer, prior, found.read))
    held = _held(recipe, found.counts)
    disk = _disk(recipe, found.counts, steps)
    title = f"computed for {on}, not measured" if on else f"measured on this machine's {accelerator.device.type}"
    groups = {"model": _model_rows(recipe, steps)}
    for stage, memory in steps.items():
        groups[f"memory of a step of the {stage}"] = _memory_rows(memory, kind, available, process)
    groups["memory of data"] = [(name, gigabytes(n)) for name, n in held.items()]
    groups[f"time, {title}"] = _time_rows(times, found.note, on)
    groups["disk"] = _disk_rows(disk)
    numbers = {
        "machine": on or accelerator.device.type,
        "images": {"train": found.counts.train, "validation": found.counts.validation},
        "memory": {
            stage: {
                "parts": dict(memory.at_peak),
                "kept": dict(memory.kept),
                "needed": needed(memory, kind) + (process if kind == "cpu" else 0),
                "micro_batch": memory.micro_batch,
            }
            for stage, memory in steps.items()
        },
        "data": held,
        "seconds": times,
        "speeds": {name: vars(each) for name, each in (("tokenizer", tokenizer), ("prior", prior)) if each},
        "disk": disk,
    }
    return Estimate(groups, numbers)


def process_bytes() -> int:
    """Resident memory of a process that has imported torch and built an optimizer, which imports more."""
    import psutil

    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    return int(psutil.Process().memory_info().rss)


def _images(recipe: Recipe, given: int | None) -> _Images:
    """How many images there are, and seconds to read one; assumed where the data is not there."""
    share = recipe.data.validation_share
    if given is None:
        try:
            sources = open_splits(recipe.data)
        except TesseraError as error:
            given = ASSUMED_IMAGES
            why = f"the recipe's are not here: {str(error).splitlines()[0]}"
        else:
            train, validation = sources["train"], sources["validation"]
            counts = Counts(len(train.ids), len(validation.ids), len(train.class_names))
            read = measure_reading(train, recipe.data.preprocess, _READERS)
            return _Images(
                counts, read, f"{len(train.ids):,} images and {len(validation.ids):,} for validation, counted"
            )
    else:
        why = "as --images says"
    n_validation = max(1, round(given * share))
    counts = Counts(max(1, given - n_validation), n_validation, 0)
    return _Images(counts, 0.0, f"{given:,} images assumed ({why}); reading them is not counted")


def _speeds(recipe: Recipe, accelerator: Accelerator, on: str | None) -> tuple[TokenizerSpeed | None, PriorSpeed]:
    """Of the tokenizer, which also encodes where it is given, and of the prior."""
    if on is not None:
        machine = named_machine(on)
        return computed_tokenizer(recipe, machine), computed_prior(recipe, machine)
    return measure_tokenizer(recipe, accelerator), measure_prior(recipe, code_layout(recipe), accelerator)


def _model_rows(recipe: Recipe, steps: Mapping[Stage, StepMemory]) -> list[tuple[str, str]]:
    preprocess = recipe.data.preprocess
    with without_memory("gpu") as (trace, device), torch.no_grad():
        tokenizer = TokenizerModel(recipe.tokenizer.model, preprocess).eval()
        image = torch.zeros(1, preprocess.n_channels, preprocess.height, preprocess.width, device=device)
        trace.work.clear()
        codes = tokenizer.encode(image)
        encode = sum(each.flops for each in trace.work)
        tokenizer.decode(codes)
        decode = sum(each.flops for each in trace.work) - encode
    values = image.numel()
    rows = [("image", f"{preprocess.height} x {preprocess.width} x {preprocess.n_channels} = {values:,} values")]
    rows += _code_rows(tokenizer, values) if tokenizer.is_discrete else _latent_rows(codes, values)
    parts = {name: getattr(tokenizer, name) for name in ("encoder", "bottleneck", "decoder")}
    rows.append(("tokenizer parameters", _parameter_counts(tokenizer, {name: [each] for name, each in parts.items()})))
    rows.append(("tokenizer FLOPs per image", f"encode {encode / 1e9:.3f}, decode {decode / 1e9:.3f} billion"))
    if "tokenizer" in steps:
        counted, fit = steps["tokenizer"], recipe.tokenizer.training.fit
        rows.append(("tokenizer FLOPs in training", _training_flops(counted, fit.batch_size, fit.steps)))
    return rows + _prior_rows(recipe, steps)


def _code_rows(tokenizer: TokenizerModel, values: int) -> list[tuple[str, str]]:
    slots = tokenizer.layout.slots
    n_codes = sum(slot.n_codes for slot in slots)
    bits = sum(slot.n_codes * math.log2(slot.codebook_size) for slot in slots)
    grids = ", ".join(" x ".join(map(str, level.shape)) for level in tokenizer.levels)
    return [
        ("tokens per image", f"{n_codes:,} ({grids})"),
        ("codebook", ", ".join(f"{slot.codebook_size:,}" for slot in slots)),
        ("compression, values", f"{values / n_codes:,.1f}x"),
        ("compression, bits", f"{values * 8 / bits:,.1f}x ({values * 8:,} to {bits:,.0f})"),
    ]


def _latent_rows(latents: torch.Tensor, values: int) -> list[tuple[str, str]]:
    size = f"{latents.numel():,} ({' x '.join(map(str, latents.shape[1:]))})"
    return [("latent values per image", size), ("compression, values", f"{values / latents.numel():,.1f}x")]


def _prior_rows(recipe: Recipe, steps: Mapping[Stage, StepMemory]) -> list[tuple[str, str]]:
    with without_memory("gpu") as (trace, device), torch.no_grad():
        prior = PriorModel(recipe.prior.model, code_layout(recipe)).eval()
        tokens = torch.zeros(1, prior.n_codes, dtype=torch.int64, device=device)
        trace.work.clear()
        prior(tokens)
        forward = sum(each.flops for each in trace.work) / prior.n_codes
    parts: dict[str, list[nn.Module]] = {
        "embeddings": [m for m in prior.children() if isinstance(m, nn.Embedding)],
        "blocks": [prior.blocks],
        "head": [prior.head],
    }
    rows = [
        ("prior parameters", _parameter_counts(prior, parts)),
        ("prior FLOPs per token", f"forward {forward / 1e6:,.2f}, training {3 * forward / 1e6:,.2f} million"),
    ]
    if "prior" in steps:
        fit = recipe.prior.training.fit
        n_codes = fit.batch_size * prior.n_codes
        flops = _training_flops(steps["prior"], fit.batch_size, fit.steps)
        rows.append(("prior FLOPs in training", f"{flops} ({n_codes:,} tokens a step)"))
    return rows


def _training_flops(counted: StepMemory, batch: int, n_steps: int) -> str:
    return f"{sum(each.flops for each in counted.work) * batch / counted.batch * n_steps:.3g}"


def _parameter_counts(model: nn.Module, parts: Mapping[str, list[nn.Module]]) -> str:
    counts = ", ".join(f"{name} {sum(map(_parameters, each)) / 1e6:.2f}" for name, each in parts.items())
    return f"{_parameters(model) / 1e6:.2f} million ({counts})"


def _parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _memory_rows(memory: StepMemory, kind: Kind, available: int, process: int) -> list[tuple[str, str]]:
    """Parts in the order of a step, then what kernels and the process take, then the sum beside what is there."""
    order = [*STATE, *(name for name in memory.at_peak if name not in (*STATE, BACKWARD)), BACKWARD]
    rows = [(name, gigabytes(memory.at_peak[name])) for name in order if memory.at_peak.get(name, 0) > 0]
    total, copied = needed(memory, kind), memory.checkpoint if kind == "cpu" else 0
    rows += [("copy for checkpoints", gigabytes(copied))] if copied else []
    rows.append(("kernels and allocator", gigabytes(total - memory.peak - copied)))
    if kind == "cpu" and process:
        rows.append(("process with its libraries", gigabytes(process)))
        total += process
    examples = f"with {memory.micro_batch:,} examples in a forward pass"
    rows.append(("peak", f"{gigabytes(total)} {examples}; {gigabytes(available)} free"))
    return rows


def _held(recipe: Recipe, counts: Counts) -> dict[str, int]:
    """Bytes of images and codes that stay in the host's memory."""
    p, limit = recipe.data.preprocess, recipe.data.cache_mib << 20
    splits = [n * p.height * p.width * p.n_channels * p.bits // 8 for n in (counts.train, counts.validation)]
    held = {"decoded images (data.cache_mib)": sum(n for n in splits if n <= limit)}
    codes = _code_bytes(recipe, counts)
    held["codes"] = codes if codes <= recipe.machine.tokens.memory_limit else 0
    return held


def _code_bytes(recipe: Recipe, counts: Counts) -> int:
    layout = code_layout(recipe)
    of_code = 2 if layout.codebook_size <= 1 << 16 else 4
    rows = counts.train * n_views(recipe) + counts.validation
    return int(rows * (layout.n_codes * of_code + _OF_ROW))


def _time_rows(times: Mapping[str, float], note: str, on: str | None) -> list[tuple[str, str]]:
    rows = [("images", note)]
    if on is not None:
        kind = named_machine(on).kind
        shares = f"{SHARE_OF_PEAK[kind]:.0%} of the peak, {SHARE_OF_BANDWIDTH:.0%} of the bandwidth"
        rows.append(("utilisation", f"{shares}, assumed"))
    rows += [(name, duration(each)) for name, each in times.items()]
    return [*rows, ("total", duration(sum(times.values())))]


def _disk(recipe: Recipe, counts: Counts, steps: Mapping[Stage, StepMemory]) -> dict[str, int]:
    """Bytes of what a run writes: checkpoints at most, one more than are kept while a new one is written."""
    disk = {}
    for stage, memory in steps.items():
        kept = max(2, getattr(recipe, stage).training.fit.keep_checkpoints) + 1
        disk[f"checkpoints of the {stage}, up to {kept}"] = kept * memory.checkpoint
        disk[f"{stage}"] = memory.at_peak.get("moments", 0) // 2
    if recipe.codes is None:
        disk["codes, at most"] = _code_bytes(recipe, counts)
    return disk


def _disk_rows(disk: Mapping[str, int]) -> list[tuple[str, str]]:
    free = shutil.disk_usage(Path.cwd()).free
    total = f"{gigabytes(sum(disk.values()))}; {gigabytes(free)} free here"
    return [*((name, gigabytes(n)) for name, n in disk.items()), ("total", total)]
