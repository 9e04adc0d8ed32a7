"""Codes that a pass guesses ahead beside codes one by one: whether they are equal, passes and time.

    python scripts/compare_windows.py runs/digits runs/cifar10-20min --images 10000 --json FILE

Each case is one way of sampling: filters, temperatures, guidance, schedules, known codes, and both ways of drawing a
code. Images are drawn one by one (``window: 1``) and with every window, from the same seeds, and compared code by code.
Sums in another order differ by a rounding error, which may choose another code where two are equally near: such images
are counted. Passes and time are those of one image at a time, and of four.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from stage2_prior.decoding.decode import iterate_codes, stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.orders import MASKED
from stage2_prior.prior import PriorModel

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "guidance 2.5": {"guidance_scale": 2.5},
    "guidance in an interval": {"guidance_scale": 2.5, "guidance_interval": (0.25, 0.75)},
    "power-cosine guidance": {"guidance_scale": 3.0, "schedule": "power-cosine", "schedule_power": 2.0},
    "temperature 0.8": {"temperature": 0.8},
    "top-k 50": {"top_k": 50},
    "top-p 0.9, guidance 2": {"top_p": 0.9, "guidance_scale": 2.0},
    "min-p 0.05": {"min_p": 0.05},
    "typical 0.9": {"typical_p": 0.9},
    "entropy-dependent": {"entropy_temperature": (0.5, 1.0, 0.7)},
    "every second code known": {"known": True},
    "the likeliest codes": {"temperature": 0.0},
}
RANDOM = ("inverse", "gumbel")
WINDOWS = (2, 4, 8)
TIMED = {"plain": {}, "guidance 2.5": {"guidance_scale": 2.5}}
_BATCH = 100


def drawn(prior: PriorModel, seeds: range, settings: dict[str, Any], window: int) -> tuple[torch.Tensor, int]:
    """(B, T) codes of some images and the passes that they took."""
    options = {name: value for name, value in settings.items() if name != "known"}
    sampling = SamplingConfig(**options, window=window)
    labels_B = torch.tensor([seed % max(1, prior.n_classes) for seed in seeds])
    labels_B = labels_B if prior.n_classes else torch.full_like(labels_B, prior.null_class)
    known_BT = torch.full((len(seeds), prior.n_codes), MASKED)
    if settings.get("known"):
        known_BT[:, ::2] = torch.arange(len(seeds))[:, None] % int(prior.sizes_T.min())
    codes_BT, n_passes = known_BT.clone(), 0
    uniforms_BT = stream_uniforms(seeds, prior.n_codes)
    for step in iterate_codes(prior, labels_B, uniforms_BT, sampling, known_BT=known_BT, seeds=seeds):
        codes_BT[step.rows].scatter_(1, step.positions_BK, step.codes_BK)
        n_passes += 1
    return codes_BT, n_passes


def equality(prior: PriorModel, n_images: int) -> dict[str, Any]:
    """How many images of each case and window have another code than one by one."""
    cases = {f"{name}, {random}": {**each, "random": random} for name, each in CASES.items() for random in RANDOM}
    n_each, unequal = -(-n_images // len(cases)), {}
    for number, (name, settings) in enumerate(cases.items()):
        wrong = dict.fromkeys(WINDOWS, 0)
        for first in range(number * n_each, (number + 1) * n_each, _BATCH):
            seeds = range(first, min(first + _BATCH, (number + 1) * n_each))
            one_by_one, _ = drawn(prior, seeds, settings, 1)
            for window in WINDOWS:
                other, _ = drawn(prior, seeds, settings, window)
                wrong[window] += int((other != one_by_one).any(1).sum())
        unequal[name] = wrong
        print(f"  {name}: of {n_each} images unequal by window {wrong}", flush=True)
    return {"images": n_each * len(cases), "unequal": unequal}


def passes_and_time(prior: PriorModel, repeats: int = 20) -> list[dict[str, Any]]:
    """Passes and milliseconds of an image by way of drawing, guidance, batch and window."""
    rows = []
    for batch in (1, 4):
        for name, settings in TIMED.items():
            for random in RANDOM:
                for window in (1, *WINDOWS):
                    drawn(prior, range(batch), {**settings, "random": random}, window)
                    began, passes = time.perf_counter(), 0
                    for i in range(repeats):
                        seeds = range(i * batch, (i + 1) * batch)
                        passes += drawn(prior, seeds, {**settings, "random": random}, window)[1]
                    taken = 1e3 * (time.perf_counter() - began) / repeats
                    row = {"case": name, "random": random, "batch": batch, "window": window}
                    rows.append({**row, "passes": passes / repeats, "milliseconds": taken})
                    print(f"  {row}: {passes / repeats:.1f} passes, {taken:.1f} ms", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs")
    parser.add_argument("--images", type=int, default=10_000, help="of all runs together")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    found = {}
    for run in options.runs:
        print(f"{run}:")
        prior = PriorModel.load(run / "prior")
        equal = equality(prior, -(-options.images // len(options.runs)))
        found[run.name] = {**equal, "codes": prior.n_codes, "timed": passes_and_time(prior)}
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
