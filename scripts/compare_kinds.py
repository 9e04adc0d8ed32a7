"""Kinds of priors on ``digits`` runs: held-out bits, and samples in several passes read by an SVC of real digits.

    python scripts/compare_kinds.py runs/raster runs/any runs/masked [--json FILE]

A prior of order any or masked is sampled in Halton order with one code in each pass, and with fewer passes; the others
one code after the other. The time is that of drawing and decoding 500 images, divided by 500.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from judge_digits import SAMPLES_PER_CLASS, svc_accuracies

from foundation.codes.dataset import TokenDataset
from pipeline.generation.generator import ImageGenerator
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split
from stage2_prior.evaluate import score_prior

_SHARES = (1, 2, 4)
"""of the codes that a pass samples: one, two and four at a time"""


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Figures of a run, one row for each number of passes."""
    folder, generator = RunFolder(run), ImageGenerator.from_pretrained(run)
    train, validation = (open_run_split(folder, folder.load_recipe(), split)[0] for split in ("train", "validation"))
    spec, row = generator.spec, {"run": run.name, "steps": folder.load_recipe().prior.training.fit.steps}
    if not spec.latents:  # bits of a density are no bits of codes
        scores = score_prior(generator.prior, TokenDataset(folder.codes, "validation"))
        row["bits"] = scores.metrics()["bits_per_code"] * spec.n_codes
    several = generator.prior.config.order in ("any", "masked")
    rows = []
    for share in _SHARES if several else _SHARES[:1]:
        passes = spec.n_codes // share
        how: dict[str, Any] = {"order": "halton", "passes": passes} if several else {}
        began = time.perf_counter()
        drawn = generator(list(range(10)), SAMPLES_PER_CLASS, seed=1_000_000, output_type="np", **how)
        seconds = (time.perf_counter() - began) / len(drawn.images)
        _, read = svc_accuracies(train, validation, drawn.images, np.array(drawn.labels))
        rows.append({**row, "passes": passes if several else generator.prior.n_steps, "read": read, "seconds": seconds})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of the digits recipe")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    rows = [row for run in options.runs for row in rows_of(run)]
    print("| run | steps of the prior | held-out bits per image | passes | read as their class | ms an image |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        bits = f"{row['bits']:.1f}" if "bits" in row else "-"
        cells = (
            row["run"],
            f"{row['steps']:,}",
            bits,
            row["passes"],
            f"{row['read']:.1%}",
            f"{1e3 * row['seconds']:.2f}",
        )
        print("| " + " | ".join(map(str, cells)) + " |")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
