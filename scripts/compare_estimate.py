"""Promised beside measured: peak memory and time of training steps of several recipes on this machine's CPU.

Each row runs in two processes: one counts and times a few steps as ``tessera estimate`` does, one trains. Without
--cards; with it, the activations of the recipes for GPUs by part, and the largest micro-batch for 24, 40 and 80 GB,
counted without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from foundation.config_fields import replaced
from foundation.hardware import keep_freed_memory
from foundation.training.saving import Snapshot
from pipeline.planning.estimate import process_bytes
from pipeline.planning.fits import needed, pass_memory
from pipeline.planning.measure import measure_prior, measure_tokenizer
from pipeline.planning.memory import STATE, Stage, code_layout, code_vectors_like, step_memory
from pipeline.planning.trace import BACKWARD
from pipeline.runs.recipe import Recipe, load_recipe
from stage1_tokenizer.losses.vgg16 import RANDOM
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorTask

ROWS: dict[str, tuple[str, Stage, dict[str, Any]]] = {
    "digits, tokenizer": ("digits", "tokenizer", {}),
    "digits, prior": ("digits", "prior", {}),
    "cifar10, tokenizer": ("cifar10", "tokenizer", {}),
    "cifar10-vqgan, tokenizer": ("cifar10-vqgan", "tokenizer", {}),
    "cifar10-rqvae, tokenizer": ("cifar10-rqvae", "tokenizer", {}),
    "pictures, tokenizer": ("pictures", "tokenizer", {}),
    "pictures, tokenizer, passes of 2": ("pictures", "tokenizer", {"tokenizer.training.micro_batch_size": 2}),
    "pictures, prior": ("pictures", "prior", {}),
    "imagenet-gpt-b, prior, a batch of 2": ("imagenet-gpt-b", "prior", {"prior.training.fit.batch_size": 2}),
}
QUICK = ("digits, tokenizer", "digits, prior", "cifar10, tokenizer")
CARDS: tuple[tuple[str, Stage], ...] = (
    ("imagenet-vqgan-f16", "tokenizer"),
    ("imagenet-vq16", "tokenizer"),
    ("imagenet-gpt-b", "prior"),
    ("imagenet-gpt-l", "prior"),
)
SIZES_GB = (24, 40, 80)
_STATUS = Path("/proc/self/status")
_STEPS = 3


def recipe_of(row: str) -> Recipe:
    """The row's recipe, in float32."""
    name, _, values = ROWS[row]
    exact = {f"{part}.precision": "float32" for part in ("tokenizer.training", "prior.training")}
    perceptual = {"precision": "float32", "vgg_weights": RANDOM}
    exact |= {f"tokenizer.training.perceptual.{field}": value for field, value in perceptual.items()}
    return replaced(load_recipe(name, values), exact)


def promised(row: str) -> dict[str, float]:
    """What an estimate says of the row."""
    recipe, (_, stage, _) = recipe_of(row), ROWS[row]
    accelerator, process = Accelerator(cpu=True), process_bytes()
    memory = needed(step_memory(recipe, stage, "cpu"), "cpu") + process
    speed = (
        measure_tokenizer(recipe, accelerator)
        if stage == "tokenizer"
        else measure_prior(recipe, code_layout(recipe), accelerator)
    )
    return {"memory": memory, "seconds": speed.step}


def measured(row: str) -> dict[str, float]:
    """Peak memory of this process after some steps and a copy for a checkpoint; mean seconds of later steps."""
    recipe, (_, stage, _) = recipe_of(row), ROWS[row]
    keep_freed_memory()
    accelerator, training = Accelerator(cpu=True), getattr(recipe, stage).training
    n, step = training.fit.batch_size, training.fit.steps - 1
    task: Any
    if stage == "tokenizer":
        preprocess = recipe.data.preprocess
        model = TokenizerModel(recipe.tokenizer.model, preprocess)
        objective = Objective(training, model, accelerator, seed=0)
        task = TokenizerTask(model, training, objective, None, accelerator, seed=0)
        examples = {"images": torch.rand(n, preprocess.n_channels, preprocess.height, preprocess.width) * 2 - 1}
    else:
        layout = code_layout(recipe)
        prior = PriorModel(recipe.prior.model, layout)
        vectors_VC = code_vectors_like(recipe, layout)
        task = PriorTask(prior, training, None, accelerator, code_vectors_VC=vectors_VC)
        tokens, labels = torch.zeros(n, prior.n_codes, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
        examples = {"tokens": tokens, "labels": labels, "positions": torch.arange(n)}
    task.train_step(examples, step)
    snapshot = Snapshot()
    snapshot.take(task.state_dict())  # as a training holds one from its first checkpoint on
    began = time.perf_counter()
    for _ in range(_STEPS):
        task.train_step(examples, step)
    seconds = (time.perf_counter() - began) / _STEPS
    kib = int(_STATUS.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    return {"memory": 1024 * kib, "seconds": seconds}


def compare(row: str) -> dict[str, Any]:
    """Both, each in a process of its own."""
    results: dict[str, Any] = {"row": row}
    for what in ("promised", "measured"):
        command = [sys.executable, "-m", "scripts.compare_estimate", f"--{what}", row]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[what] = json.loads(done.stdout.splitlines()[-1])
    return results


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| recipe | peak memory promised, MB | measured | ratio | a step promised, s | measured | ratio |",
        "|---" * 7 + "|",
    ]
    for each in rows:
        one, other = each["promised"], each["measured"]
        memory, seconds = (one[name] / other[name] for name in ("memory", "seconds"))
        lines.append(
            f"| {each['row']} | {one['memory'] / 1e6:,.0f} | {other['memory'] / 1e6:,.0f} | {memory:.2f} "
            f"| {one['seconds']:.3g} | {other['seconds']:.3g} | {seconds:.2f} |"
        )
    return "\n".join(lines)


def cards() -> list[dict[str, Any]]:
    """Of each recipe for GPUs: bytes of an example's activations by part, and what fits cards of each size."""
    found = []
    for name, stage in CARDS:
        recipe = load_recipe(name)
        few, more = (step_memory(recipe, stage, "gpu", n).kept for n in (4, 8))
        parts = {part: (more[part] - few[part]) / 4 for part in more if part not in (*STATE, BACKWARD, "batch")}
        fits = {}
        for checkpointed in (False, True):
            chosen = replaced(recipe, {f"{stage}.training.checkpoint_blocks": checkpointed})
            memory = pass_memory(chosen, stage, "gpu")
            for size in SIZES_GB:
                micro = memory.largest(int(size * 1e9))
                fits[f"{size} GB{', checkpoint_blocks' if checkpointed else ''}"] = micro
        found.append({"recipe": name, "stage": stage, "parts": parts, "fits": fits})
    return found


def cards_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| recipe | activations of an example, MB | largest micro-batch on 24, 40, 80 GB | with checkpoint_blocks |",
        "|---" * 4 + "|",
    ]
    for each in rows:
        parts = ", ".join(f"{name} {n / 1e6:,.0f}" for name, n in each["parts"].items() if n >= 5e5)
        micro = [f"{n:,}" for n in each["fits"].values()]
        half = len(SIZES_GB)
        lines.append(f"| {each['recipe']} | {parts} | {', '.join(micro[:half])} | {', '.join(micro[half:])} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three small rows")
    parser.add_argument("--only", nargs="*", choices=ROWS, metavar="ROW", help="rows to make")
    parser.add_argument("--cards", action="store_true", help="count the recipes for GPUs instead")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    for what in ("promised", "measured"):
        parser.add_argument(f"--{what}", metavar="ROW", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, work in (("promised", promised), ("measured", measured)):
        if getattr(arguments, name):
            print(json.dumps(work(getattr(arguments, name))))
            return 0
    names = arguments.only or (QUICK if arguments.quick else ROWS)
    rows = cards() if arguments.cards else [compare(name) for name in names]
    print(cards_table(rows) if arguments.cards else table(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
