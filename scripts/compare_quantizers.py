"""Every quantizer with the same encoder, decoder, steps and images: one table.

    python scripts/compare_quantizers.py                                  # CIFAR-10 from the hub
    python scripts/compare_quantizers.py --data FOLDER --only fsq-1024    # parquet files, one row

Each row is a training in ``runs/compare/NAME``; what is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from foundation.errors import DataError, TesseraError, nearest
from foundation.hardware import keep_freed_memory
from foundation.training.log import read_metrics
from pipeline.commands.start import start_run
from pipeline.runs.folder import RunFolder

VQ: dict[str, Any] = {"type": "vq", "width": 8}
BAD_START = {"learning": "gradient", "initial": "uniform", "revive_below": 0.0}
QUANTIZERS: dict[str, dict[str, Any]] = {
    "vq-ema-1024": {**VQ, "codebook_size": 1024},
    "vq-ema-16384": {**VQ, "codebook_size": 16384},
    "vq-ema-l2-1024": {**VQ, "codebook_size": 1024, "normalize": True},
    "vq-ema-rotation-1024": {**VQ, "codebook_size": 1024, "rotation": True},
    "vq-gradient-1024": {**VQ, "codebook_size": 1024, "learning": "gradient"},
    "vq-gradient-entropy-1024": {**VQ, "codebook_size": 1024, "learning": "gradient", "entropy_weight": 0.02},
    "vq-gradient-bad-start-1024": {**VQ, **BAD_START, "codebook_size": 1024},
    "simvq-1024": {
        **VQ,
        "codebook_size": 1024,
        "learning": "gradient",
        "projection": True,
        "initial": "normal",
        "revive_below": 0.0,
    },
    "fsq-1024": {"type": "fsq", "levels": [4] * 5, "evenness": 0.1},
    "fsq-16384": {"type": "fsq", "levels": [4] * 7, "evenness": 0.2},
    "fsq-uneven-1024": {"type": "fsq", "levels": [4] * 5},
    "fsq-uneven-16384": {"type": "fsq", "levels": [4] * 7},
    "fsq-random-start-1024": {"type": "fsq", "levels": [4] * 5, "initial": "random"},
    "fsq-random-start-16384": {"type": "fsq", "levels": [4] * 7, "initial": "random"},
    "fsq-random-start-even-1024": {"type": "fsq", "levels": [4] * 5, "initial": "random", "evenness": 0.1},
    "fsq-random-start-even-16384": {"type": "fsq", "levels": [4] * 7, "initial": "random", "evenness": 0.2},
    "lfq-1024": {"type": "lfq", "width": 10, "entropy_weight": 0.03},
    "lfq-1024-entropy-0.1": {"type": "lfq", "width": 10, "entropy_weight": 0.1},
    "lfq-1024-entropy-0.005": {"type": "lfq", "width": 10, "entropy_weight": 0.005},
    "bsq-1024": {"type": "bsq", "width": 10, "entropy_weight": 0.03, "entropy_temperature": 0.1},
    "residual-4x1024": {"type": "residual", "depth": 4, "codebook": {"codebook_size": 1024, "width": 8}},
    "gumbel-1024": {"type": "gumbel", "codebook_size": 1024, "width": 8, "kl_weight": 0.0, "temperature_steps": 200},
    "ibq-1024": {"type": "ibq", "codebook_size": 1024, "width": 8},
    "ibq-16384": {"type": "ibq", "codebook_size": 16384, "width": 8},
    "kl-4": {"type": "kl", "width": 4, "weight": 1e-6},
}


def row(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one tokenizer, or read what it reached before."""
    folder = RunFolder(Path(arguments.out) / name)
    job = start_run("cifar10", str(folder.root), overrides(name, arguments))
    job.train_tokenizer()
    job.run.release()
    last = read_metrics(folder.metrics, "tokenizer", "held_out")[-1]
    warnings = read_metrics(folder.metrics, "tokenizer", "warning")
    model = job.run.recipe.tokenizer
    return {
        "quantizer": name,
        "PSNR, dB": last["psnr"],
        "SSIM": last["ssim"],
        "usage": last.get("code_usage"),
        "perplexity": last.get("code_perplexity"),
        "images/s": images_per_second(folder, model.training.fit.batch_size),
        "warned": bool(warnings),
    }


def overrides(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What differs from the cifar10 recipe."""
    values: dict[str, Any] = {
        "name": name,
        "tokenizer.model.quantizer": QUANTIZERS[name],
        "tokenizer.training.fit.steps": arguments.steps,
        "tokenizer.training.fit.evaluate_every": max(1, arguments.steps // 4),
    }
    if arguments.data:
        values["data.source"] = {"type": "dataset", "path": arguments.data, "validation_split": "validation"}
    if arguments.limit:
        values["data.source.limit"] = arguments.limit
    return values


def images_per_second(folder: RunFolder, batch_size: int) -> float:
    """Median over the training's log lines; evaluations between them are outliers that a median ignores."""
    rows = read_metrics(folder.metrics, "tokenizer", "train")
    pairs = [
        (later["step"] - sooner["step"], later["seconds"] - sooner["seconds"])
        for sooner, later in pairwise(rows)
        if later["seconds"] > sooner["seconds"]
    ]
    return statistics.median(steps * batch_size / seconds for steps, seconds in pairs)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| quantizer | PSNR, dB | SSIM | codes in use | perplexity | images/s | warned |", "|---" * 7 + "|"]
    for each in rows:
        usage = "-" if each["usage"] is None else f"{each['usage']:.1%}"
        perplexity = "-" if each["perplexity"] is None else f"{each['perplexity']:,.0f}"
        lines.append(
            f"| {each['quantizer']} | {each['PSNR, dB']:.2f} | {each['SSIM']:.3f} | {usage} | {perplexity} "
            f"| {each['images/s']:.0f} | {'yes' if each['warned'] else 'no'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of parquet files with splits train and validation; default the hub's")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each row")
    parser.add_argument("--limit", type=int, help="use only this many images of each split")
    parser.add_argument("--only", nargs="*", default=list(QUANTIZERS), metavar="NAME", help="rows to make")
    parser.add_argument("--out", default="runs/compare", help="where the runs go")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        for name in arguments.only:
            if name not in QUANTIZERS:
                raise DataError("no such row", field="--only", found=name, fix=nearest(name, QUANTIZERS))
        rows = [row(name, arguments) for name in arguments.only]
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
