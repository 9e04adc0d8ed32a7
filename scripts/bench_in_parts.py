"""What micro-batches and checkpointing of stage 1 save, cost and change; ``bench_tokenizer.py --in-parts`` runs it.

A training step of the whole task, losses, discriminator and optimizers included, in one pass, two and four, with and
without checkpointing, each in a process of its own: the peak resident set of two steps above what the process held
before, and the median processor time of more. Differences are the largest of a logged scalar and of a parameter's
gradient, relative to the step in one pass, in float32 and in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from bench_report import Row, compare, in_fresh_process, peak_memory_mib, report

from foundation.config import from_dict
from foundation.images.config import Preprocess
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask

_NETWORKS = {"type": "vqgan", "base_width": 32, "width_multipliers": [1, 2, 2], "n_res_blocks": 2}
_MAGVIT2 = {**_NETWORKS, "type": "magvit2"}
_VQ = {"type": "vq", "codebook_size": 1024, "width": 8}
_GAN = {
    "perceptual": {"weight": 1.0, "vgg_weights": "random"},
    "adversarial": {"weight": 0.5, "start_step": 0, "ramp_steps": 0, "lecam_weight": 0.001},
}
SYSTEMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "VQGAN, LPIPS, adaptive GAN": ({"networks": _NETWORKS, "quantizer": {**_VQ, "learning": "gradient"}}, _GAN),
    "MAGVIT-2, LFQ": ({"networks": _MAGVIT2, "quantizer": {"type": "lfq", "width": 10, "entropy_weight": 0.1}}, {}),
    "VQGAN, VQ by averages": ({"networks": _NETWORKS, "quantizer": _VQ}, {}),
    "VQ-VAE-2": ({"networks": _NETWORKS, "quantizer": _VQ, "coarse_halvings": 1}, {}),
}
"""by name: settings of the model, and of the training beside its length"""
PASSES, SIDE, BATCH = (1, 2, 4), 64, 16
SMALL = {"side": 32, "batch": 4}
"""where differences are measured"""
DTYPES = (torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to compute a step."""

    system: str
    passes: int
    again: bool
    side: int
    batch: int

    def build(self, dtype: torch.dtype = torch.float32) -> TokenizerTask:
        """The task with its first weights; residual paths, which start at zero, are not."""
        torch.manual_seed(0)
        model_values, training_values = SYSTEMS[self.system]
        preprocess, accelerator = Preprocess(height=self.side, width=self.side), Accelerator(cpu=True)
        training = from_dict(
            TokenizerTraining,
            {
                "fit": {"steps": 100, "batch_size": self.batch},
                "micro_batch_size": None if self.passes == 1 else self.batch // self.passes,
                "checkpoint_blocks": self.again,
                **training_values,
            },
        )
        model = TokenizerModel(from_dict(TokenizerConfig, {"latent_channels": 64, **model_values}), preprocess)
        for each in model.parameters():
            if not each.any():
                torch.nn.init.normal_(each, std=0.02)
        objective = Objective(training, model, accelerator, seed=0)
        task = TokenizerTask(model.to(dtype), training, objective, None, accelerator, seed=0)
        for module in objective.networks().values():
            module.to(dtype)
        return task

    def images(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Random pixels in [-1, 1]."""
        generator = torch.Generator().manual_seed(1)
        pixels = torch.rand(self.batch, 3, self.side, self.side, generator=generator, dtype=torch.float64)
        return (pixels * 2 - 1).to(dtype)


def step_cost(case: Case, n_threads: int, repeats: int) -> tuple[float, float]:
    """(MiB that steps hold at their peak above model, losses and imports; milliseconds of processor time of a step)."""
    torch.set_num_threads(n_threads)
    task, images, times = case.build(), case.images(), []

    def steps(n: int) -> None:
        for _ in range(n):
            began = time.process_time()
            task.train_step({"images": images}, 1)
            times.append((time.process_time() - began) * 1e3)

    peak = peak_memory_mib(lambda: steps(2))
    steps(repeats)
    return peak, statistics.median(times[2:])


def all_differences(cases: Sequence[Case], dtype: torch.dtype) -> list[tuple[float, float]]:
    """Of each case from the first; for a process of its own."""
    if dtype == torch.float64:  # what computes in float32 whatever the weights are
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
        torch.set_default_dtype(dtype)
    first = step_values(cases[0], dtype)
    return [difference(step_values(case, dtype), first) for case in cases]


def step_values(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Logged scalars and gradients of one step by name, in float64."""
    task, found = case.build(dtype), {}
    adversary = task.objective.adversary
    networks = {"model": task.model, **({} if adversary is None else {"discriminator": adversary.learner.model})}

    def keep(name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        found[name] = parameter.grad.to(torch.float64, copy=True)

    for network, module in networks.items():
        for name, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(functools.partial(keep, f"gradient {network}.{name}"))
    torch.manual_seed(2)
    row = task.train_step({"images": case.images(dtype)}, 1)
    return {**found, **{name: torch.tensor(float(value), dtype=torch.float64) for name, value in row.items()}}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, float]:
    """The largest of a scalar and of a gradient, relative to it; gradients below 1e-3 of the longest count as that."""
    lengths = {name: float(each.norm()) for name, each in other.items()}
    longest = max(length for name, length in lengths.items() if name.startswith("gradient"))
    worst = {True: 0.0, False: 0.0}
    for name, each in one.items():
        is_gradient = name.startswith("gradient")
        least = 1e-3 * longest if is_gradient else 1e-3
        share = float((each - other[name]).norm()) / max(lengths[name], least)
        worst[is_gradient] = max(worst[is_gradient], share)
    return worst[False], worst[True]


def bench(system: str, side: int, batch: int, repeats: int) -> list[Row]:
    """Rows of memory and time for one system; ``config`` has the differences."""
    n_threads = torch.get_num_threads()
    cases = {
        f"{passes} {'pass' if passes == 1 else 'passes'}{', blocks again' if again else ''}": Case(
            system, passes, again, side, batch
        )
        for again in (False, True)
        for passes in PASSES
    }
    small = [dataclasses.replace(case, **SMALL) for case in cases.values()]
    differences = {str(dtype).split(".")[1]: in_fresh_process(all_differences, small, dtype) for dtype in DTYPES}
    costs = {name: in_fresh_process(step_cost, case, n_threads, repeats) for name, case in cases.items()}
    first, rows = next(iter(cases)), []
    for i, (name, cost) in enumerate(costs.items()):
        config = {"side": side, "batch": batch, "threads": n_threads}
        config["differences"] = {dtype: each[i] for dtype, each in differences.items()}
        for unit, mine, whole in zip(("MiB", "ms of processor"), cost, costs[first], strict=True):
            rows.append(compare(f"{system}: {name}", unit, mine, whole, first, config=config))
    return rows


def differences_table(rows: list[Row]) -> str:
    """The differences of each case: of losses and of gradients, in float32 and in float64."""
    lines = []
    for row in rows[::2]:
        parts = [
            f"{dtype}: losses {losses:.1e}, gradients {gradients:.1e}"
            for dtype, (losses, gradients) in row.config["differences"].items()
        ]
        lines.append(f"{row.workload}: {'; '.join(parts)}")
    return "\n".join(lines)


def main(options: argparse.Namespace) -> None:
    """Measure all systems, or with ``quick`` one of them at a small size."""
    side, batch, repeats = (*SMALL.values(), 1) if options.quick else (SIDE, BATCH, 2)
    systems = list(SYSTEMS)[-1:] if options.quick else list(SYSTEMS)
    rows = []
    for system in systems:
        rows += bench(system, side, batch, repeats)
        print(differences_table(rows[-2 * len(PASSES) * 2 :]), flush=True)
    report(rows, options.json)
