"""Whether runs keep to their budgets: what each part was promised to take, and what it took.

    python scripts/bench_budget.py RECIPE BUDGET... [--busy N] [--out FOLDER] [--quick] [--json FILE] [--FIELD VALUE]

Runs ``tessera run RECIPE --budget BUDGET`` as a command of its own for each budget, beside ``--busy`` processes that
keep a core busy each, and prints a table. The ratio of a row is budget / time taken: 1 is exact, above 1 too early.
Fields of the recipe come last, e.g. ``--data.source.path pictures``. The runs stay in the folder, to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.planning.ledger import read_times, time_rows
from pipeline.runs.duration import Budget, duration
from scripts.bench_threads import busy_processes

ROOT = Path(__file__).parents[1]


def bench(recipe: str, budget: str, fields: list[str], folder: Path, busy: int) -> dict[str, Any]:
    """Run one budget; returns a row of the results."""
    line = [sys.executable, "-m", "pipeline.cli", "run", recipe, "--budget", budget, "-o", str(folder), *fields]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with busy_processes(busy) if busy else contextlib.nullcontext():
        began = time.perf_counter()
        subprocess.run(line, check=True, env=environment)
        taken = time.perf_counter() - began
    times, asked = read_times(folder / "times.json"), Budget.parse(budget).total
    config = {"recipe": recipe, "budget": budget, "busy": busy, "parts": times, "cores": os.cpu_count()}
    return {
        "workload": f"{recipe}, {budget}" + (f", beside {busy} busy processes" if busy else ""),
        "unit": "s",
        "ours": taken,
        "reference": asked,
        "reference_name": "budget",
        "ratio": asked / taken,
        "floor": None,
        "config": config,
    }


def table(row: dict[str, Any]) -> str:
    """The parts of a run, and its whole time beside its budget."""
    lines = [row["workload"], f"  {'part':20} {'promised':>10} {'taken':>10}"]
    parts = time_rows(row["config"]["parts"])
    lines += [f"  {part:20} {promised:>10} {taken:>10}" for part, promised, taken in parts]
    over = row["ours"] / row["reference"] - 1
    whole = f"{duration(row['ours'])} of {duration(row['reference'])} ({over:+.1%})"
    return "\n".join([*lines, f"  whole command: {whole}"])


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("recipe", help="a recipe's name or file")
    parser.add_argument("budgets", nargs="*", default=["5m", "10m"], help="such as 5m 1h 10m+30m")
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy each")
    parser.add_argument("--out", type=Path, help="folder of the runs; default a temporary one")
    parser.add_argument("--quick", action="store_true", help="one budget of 90 seconds")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options, fields = parser.parse_known_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="budget-"))
    rows = []
    for i, budget in enumerate(["90s"] if options.quick else options.budgets):
        rows.append(bench(options.recipe, budget, fields, out / f"{i}-{budget}", options.busy))
        print(table(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
