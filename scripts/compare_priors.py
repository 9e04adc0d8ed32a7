"""One token dataset, several priors with an equal budget: what each choice is worth in bits per code.

    python scripts/compare_priors.py runs/cifar10-20min --minutes 20    # steps from the speed of the first row
    python scripts/compare_priors.py runs/digits --steps 600 --only 2d-rope learned-positions

RUN is a run folder with codes; its recipe says how large the priors are and how they are trained. Each row is a
training in ``runs/compare-priors/NAME``; what is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from foundation.codes.dataset import TokenDataset
from foundation.config import require
from foundation.errors import ConfigError, DataError, TesseraError, nearest
from foundation.hardware import keep_freed_memory
from foundation.storage.serialization import read_json
from foundation.training.log import read_metrics
from pipeline.commands.start import start_run
from pipeline.planning.measure import measure_prior
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import load_recipe
from stage2_prior.count_models import NeighbourModel, UnigramModel, mean_bits
from stage2_prior.prior import PriorModel

BASE = {
    "prior.model.positions": "rope",
    "prior.model.target_aware": False,
    "prior.model.qk_norm": True,
    "prior.model.dropout": 0.1,
    "prior.model.token_dropout": None,
    "prior.model.residual_dropout": None,
    "prior.model.attention_dropout": None,
    "prior.model.class_conditional": True,
}
PRIORS: dict[str, dict[str, Any]] = {
    "2d-rope": {},
    "2d-rope-target-aware": {"prior.model.target_aware": True},
    "learned-positions": {"prior.model.positions": "learned"},
    "no-qk-norm": {"prior.model.qk_norm": False},
    "no-dropout": {"prior.model.dropout": 0.0},
    "unconditional": {"prior.model.class_conditional": False},
}
"""What differs from BASE, which is class-conditional where the codes have labels."""
QUICK_STEPS = 30


def row(name: str, source: RunFolder, out: Path, steps: int) -> dict[str, Any]:
    """Train one prior, or read what it reached before."""
    folder = row_folder(source, out / name)
    _require_steps(folder, steps)
    job = start_run(str(source.recipe), str(folder.root), overrides(name, steps))
    job.train_prior()
    job.run.release()
    held_out = read_metrics(folder.metrics, "prior", "held_out")
    parameters = sum(each.numel() for each in PriorModel.load(folder.prior).parameters())
    return {
        "prior": name,
        "parameters": parameters,
        "steps": steps,
        "bits per code": held_out[-1]["bits_per_code"],
        "best": min(each["bits_per_code"] for each in held_out),
        "seconds": read_metrics(folder.metrics, "prior", "train")[-1].get("seconds"),
    }


def overrides(name: str, steps: int) -> dict[str, Any]:
    """What a row changes in the run's recipe."""
    return {
        **BASE,
        **PRIORS[name],
        "name": name,
        "prior.training.fit.steps": steps,
        "prior.training.fit.evaluate_every": max(1, steps // 5),
        "prior.training.random_order": None,
    }


def row_folder(source: RunFolder, root: Path) -> RunFolder:
    """A run folder that borrows the tokenizer and the codes of the source."""
    folder = RunFolder(root)
    root.mkdir(parents=True, exist_ok=True)
    for theirs, ours in ((source.tokenizer, folder.tokenizer), (source.codes, folder.codes)):
        if not theirs.is_dir():
            raise DataError("the run has no codes yet", field="RUN", found=str(theirs), fix="run tessera encode first")
        if not ours.exists():
            ours.symlink_to(theirs.resolve(), target_is_directory=True)
        if ours.resolve() != theirs.resolve():
            found, expected = str(ours.resolve()), str(theirs.resolve())
            raise DataError(
                "has other codes", field=str(root), found=found, expected=expected, fix="give another --out"
            )
    return folder


def _require_steps(folder: RunFolder, steps: int) -> None:
    """Refuse a row that was trained with another number of steps."""
    trained = folder.load_recipe().prior.training.fit.steps if folder.prior.exists() else steps
    what, field, fix = "differs from that of a row", "prior.training.fit.steps", "give another --out"
    ConfigError.unless(trained == steps, what, field=field, found=steps, expected=trained, fix=fix)


def steps_of(source: RunFolder, out: Path, minutes: float) -> int:
    """As many steps of the first row as fit into so many minutes here; measured once and kept in ``budget.json``."""
    path = out / "budget.json"
    if path.is_file():
        kept = read_json(path, ("minutes", "steps"), fix="delete it: the speed is measured again")
        same, expected = kept["minutes"] == minutes, f"{kept['minutes']}, as in the rows that are there"
        require(same, "--minutes", minutes, expected, "give another --out")
        return int(kept["steps"])
    from accelerate import Accelerator

    recipe = load_recipe(str(source.recipe), overrides(next(iter(PRIORS)), 2))
    accelerator = Accelerator(cpu=recipe.machine.device == "cpu")
    seconds = measure_prior(recipe, TokenDataset(source.codes).spec, accelerator).step
    steps = max(1, int(60 * minutes / seconds))
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"minutes": minutes, "steps": steps, "seconds_per_step": seconds}), encoding="utf-8")
    return steps


def references(source: RunFolder) -> dict[str, float]:
    """Held-out bits per code of the models that count, fitted on the training codes."""
    train, validation = (TokenDataset(source.codes, split) for split in ("train", "validation"))
    models: dict[str, UnigramModel | NeighbourModel] = {
        "counts of left and upper neighbours": NeighbourModel.fit(train.codes_NT, train.spec),
        "code frequencies": UnigramModel.fit(train.codes_NT, train.spec),
    }
    return {name: mean_bits(model, validation.codes_NT) for name, model in models.items()}


def table(rows: list[dict[str, Any]], counted: dict[str, float]) -> str:
    """Markdown; the prior's gain over the neighbours beside its bits."""
    neighbours = next(iter(counted.values()))
    lines = [
        "| prior | parameters | steps | held-out bits per code | best | below neighbours | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        minutes = "-" if each["seconds"] is None else f"{each['seconds'] / 60:.1f}"
        lines.append(
            f"| {each['prior']} | {each['parameters'] / 1e6:.2f} M | {each['steps']:,} | {each['bits per code']:.4f} "
            f"| {each['best']:.4f} | {1 - each['bits per code'] / neighbours:.1%} | {minutes} |"
        )
    lines += [
        f"| {name} | - | - | {bits:.4f} | - | {1 - bits / neighbours:.1%} | - |" for name, bits in counted.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder with codes")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="optimizer steps of each row; default those of the run's recipe")
    budget.add_argument("--minutes", type=float, help="minutes of the first row here; all rows get its steps")
    budget.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of each row, to see it work")
    parser.add_argument("--only", nargs="*", default=list(PRIORS), metavar="NAME", help="rows to make")
    parser.add_argument("--out", type=Path, default=Path("runs/compare-priors"), help="where the runs go")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        for name in arguments.only:
            if name not in PRIORS:
                raise DataError("no such row", field="--only", found=name, fix=nearest(name, PRIORS))
        for option in ("steps", "minutes"):
            value = getattr(arguments, option)
            if value is not None and value <= 0:
                raise ConfigError("is no budget", field=f"--{option}", found=value, expected="a positive number")
        source = RunFolder(Path(arguments.run))
        steps = QUICK_STEPS if arguments.quick else arguments.steps or source.load_recipe().prior.training.fit.steps
        if arguments.minutes is not None:
            steps = steps_of(source, arguments.out, arguments.minutes)
        rows, counted = [row(name, source, arguments.out, steps) for name in arguments.only], references(source)
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows, counted))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rows": rows, "counted": counted}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
