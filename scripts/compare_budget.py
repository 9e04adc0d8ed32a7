"""What methods are worth at equal time: trials from one queue, each trained for its budget, then scored alike.

    python scripts/compare_budget.py run TRIALS.yaml --data FOLDER --out QUEUE      # goes on where it stopped
    python scripts/compare_budget.py keep TRIALS.yaml --out QUEUE --to docs/results/cifar10.json
    python scripts/compare_budget.py table docs/results/cifar10.json   # prints the tables of docs/RESULTS.md
    python scripts/compare_budget.py table docs/results/cifar10.json --into docs/RESULTS.md

``run`` trains and scores the trials of the file that have no result yet, one after the other, so that each has the
machine to itself: a trial that was interrupted goes on, and says so in its result. ``keep`` puts the results into one
file beside the documents, ``table`` prints that file. See ``scripts/trials/`` for the parts and the trials themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from foundation.errors import DataError, TesseraError, nearest
from foundation.hardware import keep_freed_memory
from foundation.storage import durable
from scripts.trials.queue import Place, Trial, load_trials, open_rows, row_of, save_result, train
from scripts.trials.tables import inserted, kept_rows, tables


def run(trials: list[Trial], place: Place, *, keep_going: bool) -> int:
    """Train and score what has no result; returns how many trials failed."""
    from scripts.trials.priors import train_prior
    from scripts.trials.score import score_llama, score_run

    failed = 0
    for trial, seed in open_rows(trials, place):
        print(f"{trial.name}, seed {seed}: {trial.budget}", flush=True)
        interrupted = place.run(trial.name, seed).exists()
        try:
            if trial.prior == "llama":
                figures = score_llama(trial, seed, place)
            else:
                seconds = train(trial, seed, place) if trial.codes_of is None else train_prior(trial, seed, place)
                figures = {**score_run(trial, seed, place), "seconds": seconds}
        except TesseraError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
            if not keep_going:
                return failed
            continue
        save_result(trial, seed, place, {**figures, "interrupted": interrupted})
        print(json.dumps(figures["figures"]), flush=True)
    return failed


def chosen(trials: list[Trial], only: list[str]) -> list[Trial]:
    """The trials with these names; all without any.

    Raises:
        DataError: no such trial.
    """
    names = [each.name for each in trials]
    for name in only:
        DataError.unless(name in names, "no such trial", field="--only", found=name, fix=nearest(name, names))
    return [each for each in trials if not only or each.name in only]


def keep(trials: list[Trial], place: Place, path: Path) -> None:
    """Put the results into one file, in the order of the trials: a newer result takes an older one's place.

    What the file holds of other trials and seeds stays; a row whose trial has other fields today goes.
    """
    known = [] if not path.is_file() else json.loads(path.read_text(encoding="utf-8"))
    today = {(trial.name, seed): row_of(trial, seed) for trial in trials for seed in trial.seeds}
    found = {(row["name"], row["seed"]): row for row in known}
    rows = [row for key, row in found.items() if key not in today]
    for key, about in today.items():
        file = place.result(*key)
        row = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else found.get(key)
        if row is not None and row == {**row, **about}:
            rows.append(row)
        elif row is not None:
            print(f"left out: {key[0]}, seed {key[1]}, since its trial has other fields today")
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.replace_file(path, (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode())


def show(results: Path, document: Path | None) -> None:
    """Print the tables of kept results, or put them into a document."""
    text = tables(kept_rows(results))
    if document is None:
        print(text)
        return
    old = document.read_text(encoding="utf-8")
    durable.replace_file(document, inserted(old, results.stem, text).encode())


def images_of(dataset: str | None, image_column: str) -> dict[str, Any]:
    """Dotted fields of the images of a dataset; without one, recipes keep their own."""
    if dataset is None:
        return {}
    source = {"type": "dataset", "path": str(Path(dataset).resolve()), "split": "train"}
    columns = {"validation_split": "validation", "image_column": image_column, "label_column": "label"}
    return {f"data.source.{name}": value for name, value in {**source, **columns}.items()}


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, says in (("run", "train and score what is missing"), ("keep", "put the results into one file")):
        each = commands.add_parser(name, help=says)
        each.add_argument("trials", type=Path, help="a file of trials")
        each.add_argument("--out", type=Path, default=Path("runs/trials"), help="folder of the queue")
        each.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these trials alone")
    commands.choices["run"].add_argument("--data", help="a dataset with splits train and validation, and labels")
    commands.choices["run"].add_argument("--image-column", default="image", help="column of the images")
    commands.choices["run"].add_argument("--keep-going", action="store_true", help="go on after a trial that fails")
    commands.choices["keep"].add_argument("--to", type=Path, required=True, help="file of kept results")
    table = commands.add_parser("table", help="print kept results, or write them into a document")
    table.add_argument("results", type=Path, help="a file of kept results")
    table.add_argument(
        "--into", type=Path, help="a document with a place for them, between comments of the file's name"
    )
    return parser.parse_args()


def main() -> int:
    """Do what the command says."""
    arguments = _arguments()
    try:
        if arguments.command == "table":
            show(arguments.results, arguments.into)
            return 0
        trials = chosen(load_trials(arguments.trials), arguments.only)
        if arguments.command == "keep":
            keep(trials, Place(arguments.out.resolve(), {}), arguments.to)
            return 0
        keep_freed_memory()
        place = Place(arguments.out.resolve(), images_of(arguments.data, arguments.image_column))
        return 1 if run(trials, place, keep_going=arguments.keep_going) else 0
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
