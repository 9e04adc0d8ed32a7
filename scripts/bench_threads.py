"""How OpenMP's threads should wait: speed of training and sampling by wait policy and spin count.

Each setting runs in a fresh process, since OpenMP reads it once; rounds alternate between the settings, alone and
beside busy processes, which this script starts. Figures are the medians of the rounds. Settings: OpenMP's own default,
active, passive, and passive with some spins before the sleep (``GOMP_SPINCOUNT``, of GNU's library), which is what the
commands set (``foundation.threads.WAITING``).

    python scripts/bench_threads.py [--quick] [--rounds N] [--busy N] [--seconds S] [--only TEXT]
        [--settings passive "spin 1,000"] [--json FILE]

Wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "active": {"OMP_WAIT_POLICY": "active"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    **{
        f"spin {n:,}": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(n)}
        for n in (100, 1_000, 3_000, 10_000, 30_000, 100_000)
    },
}
QUICK = ("default", "passive", "spin 10,000")
WORK = ("digits tokenizer", "digits prior", "digits sampling", "cifar10 tokenizer", "cifar10 prior", "cifar10 sampling")
UNIT = {"tokenizer": "steps/s", "prior": "steps/s", "sampling": "images/s"}
_CLEARED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_RECIPES = {"digits": "digits", "cifar10": "cifar10-20min"}
_IMAGES = 16
"""sampled at once"""
Step = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """The speed of one kind of work under one setting.

    Attributes:
        work: one of ``WORK``.
        setting: one of ``SETTINGS``.
        busy: processes beside it.
        speed: median over the rounds, in ``unit``.
        unit: steps or images a second.
        rounds: of each round.
    """

    work: str
    setting: str
    busy: int
    speed: float
    unit: str
    rounds: tuple[float, ...]


def measure(work: str, seconds: float) -> float:
    """Steps or images per second in this process, after a warm-up."""
    from foundation.hardware import keep_freed_memory

    keep_freed_memory()
    name, kind = work.split(" ")
    step, count = {"tokenizer": _tokenizer_step, "prior": _prior_step, "sampling": _sampling}[kind](_RECIPES[name])
    step()
    began, n = time.perf_counter(), 0
    while n < 2 or time.perf_counter() - began < seconds:
        step()
        n += 1
    return n * count / (time.perf_counter() - began)


def _tokenizer_step(recipe_name: str) -> tuple[Step, int]:
    import torch
    from accelerate import Accelerator

    from pipeline.runs.recipe import load_recipe
    from stage1_tokenizer.objective import Objective
    from stage1_tokenizer.tokenizer import TokenizerModel
    from stage1_tokenizer.train import TokenizerTask

    recipe, accelerator = load_recipe(recipe_name, {"tokenizer.training.precision": "float32"}), Accelerator(cpu=True)
    stage, preprocess = recipe.tokenizer, recipe.data.preprocess
    torch.manual_seed(0)
    model = TokenizerModel(stage.model, preprocess)
    objective = Objective(stage.training, model, accelerator, seed=0)
    shape = (stage.training.fit.batch_size, preprocess.n_channels, preprocess.height, preprocess.width)
    batch = {"images": torch.rand(shape) * 2 - 1}
    task = TokenizerTask(model, stage.training, objective, None, accelerator, seed=0)  # type: ignore[arg-type]
    steps = iter(range(1, 1 << 30))
    return lambda: task.train_step(batch, next(steps)), 1


def _prior_step(recipe_name: str) -> tuple[Step, int]:
    import torch
    from accelerate import Accelerator

    from pipeline.runs.recipe import load_recipe
    from stage2_prior.train import PriorTask

    recipe = load_recipe(recipe_name, {"prior.training.precision": "float32"})
    prior = _prior(recipe_name)
    task = PriorTask(prior, recipe.prior.training, None, Accelerator(cpu=True), seed=0)
    n_images = recipe.prior.training.fit.batch_size
    tokens = torch.randint(0, prior.spec.levels[0].codebook_size, (n_images, prior.n_codes))
    batch = {"tokens": tokens, "labels": torch.zeros(n_images, dtype=torch.int64), "positions": torch.arange(n_images)}
    steps = iter(range(1, 1 << 30))
    return lambda: task.train_step(batch, next(steps)), 1


def _sampling(recipe_name: str) -> tuple[Step, int]:
    import torch

    from stage2_prior.decoding.decode import iterate_codes, stream_uniforms
    from stage2_prior.decoding.sampling import SamplingConfig

    prior = _prior(recipe_name).eval()
    labels, uniforms = torch.zeros(_IMAGES, dtype=torch.int64), stream_uniforms(range(_IMAGES), prior.n_codes)
    return lambda: [*iterate_codes(prior, labels, uniforms, SamplingConfig(guidance_scale=2.0))], _IMAGES


def _prior(recipe_name: str):  # type: ignore[no-untyped-def]
    import torch

    from pipeline.runs.recipe import load_recipe
    from stage1_tokenizer.tokenizer import TokenizerModel
    from stage2_prior.prior import PriorModel

    recipe = load_recipe(recipe_name)
    spec = TokenizerModel(recipe.tokenizer.model, recipe.data.preprocess).spec
    torch.manual_seed(0)
    prior = PriorModel(recipe.prior.model, spec.with_classes(tuple("abcdefghij")))
    torch.nn.init.normal_(prior.head.weight, std=0.05)
    return prior


def in_fresh_process(work: str, setting: str, seconds: float) -> float:
    """``measure`` in a new interpreter with the setting's environment."""
    kept = {name: value for name, value in os.environ.items() if name not in _CLEARED}
    line = [sys.executable, __file__, "--measure", work, "--seconds", str(seconds)]
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**kept, "PYTHONPATH": path, **SETTINGS[setting]}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{work}, {setting}: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.split()[-1])


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that each keep one core busy, for a while."""
    command = [sys.executable, "-c", "while True: sum(range(100_000))"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def bench(works: list[str], settings: list[str], loads: list[int], rounds: int, seconds: float) -> list[Figure]:
    """All figures; in each round, every setting once, in turn."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for busy in loads:
        with busy_processes(busy):
            for i in range(rounds):
                for work in works:
                    for setting in settings if i % 2 == 0 else settings[::-1]:
                        speed = in_fresh_process(work, setting, seconds)
                        found.setdefault((work, setting, busy), []).append(speed)
                        print(f"  {work}, {setting}, {busy} busy: {speed:.2f}", file=sys.stderr, flush=True)
    return [
        Figure(work, setting, busy, statistics.median(speeds), UNIT[work.split(" ")[1]], tuple(speeds))
        for (work, setting, busy), speeds in found.items()
    ]


def table(figures: list[Figure]) -> str:
    """A row for each setting, a column for each work and load: the speed, and its share of the default's when alone."""
    columns = list(dict.fromkeys((each.work, each.busy) for each in figures))
    speed = {(each.setting, each.work, each.busy): each for each in figures}
    settings = list(dict.fromkeys(each.setting for each in figures))
    cells = [["setting", *(f"{work}{f', {busy} busy' if busy else ''}" for work, busy in columns)]]
    for setting in settings:
        row = [setting]
        for work, busy in columns:
            each, first = speed[setting, work, busy], speed[settings[0], work, busy]
            row.append(f"{each.speed:.3g} {each.unit} ({each.speed / first.speed:.2f})")
        cells.append(row)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, few settings, the digits only")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes for each figure")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each timed run")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="busy processes of the loaded half")
    parser.add_argument("--only", default="", help="the works whose name contains this text")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), help="some settings only")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", choices=WORK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(options.measure, options.seconds))
        return
    works = [each for each in WORK if options.only in each]
    settings, rounds, seconds = list(SETTINGS), options.rounds, options.seconds
    if options.quick:
        works, settings, rounds, seconds = [each for each in works if "digits" in each], list(QUICK), 1, 1.0
    settings = options.settings or settings
    figures = bench(works, settings, [0, options.busy], rounds, seconds)
    print(table(figures))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
