"""The queue of trials: which are open, what is kept, what the tables say; and one real trial of digits."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_run import ROOT

from foundation.errors import ConfigError, DataError
from scripts.compare_budget import keep
from scripts.trials.queue import Place, Trial, checkout, load_trials, open_rows, save_result
from scripts.trials.tables import inserted, kept_rows, tables

FIGURES = {"psnr": 25.0, "rfd": 300.0, "bits": 540.0, "fd": 700.0, "accuracy": 0.25, "recall": 0.1, "precision": 0.9}


def result(**changes: Any) -> dict[str, Any]:
    sizes = {"tokenizer": 200_000, "prior": 400_000}
    row = {
        "name": "one",
        "budget": "1m+1m",
        "machine": "2 cores",
        "pretrained": False,
        "recipe": "digits",
        "codes_of": None,
        "fields": {},
        "revision": None,
        "seconds": 120.0,
        "parameters": sizes,
    }
    return {**row, "figures": FIGURES, **changes}


def test_every_trial_has_its_first_seed_before_any_has_its_second(tmp_path: Path) -> None:
    trials = [Trial(name=name, recipe="digits", budget="2m", seeds=(3, 4)) for name in ("one", "two")]
    place = Place(tmp_path, {})
    assert [(each.name, seed) for each, seed in open_rows(trials, place)] == [
        ("one", 3),
        ("two", 3),
        ("one", 4),
        ("two", 4),
    ]
    save_result(trials[0], 3, place, {"figures": FIGURES})
    assert next((each.name, seed) for each, seed in open_rows(trials, place)) == ("two", 3)
    assert json.loads(place.result("one", 3).read_text())["figures"] == FIGURES


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("- {name: a, recipe: digits, budget: 2m, colour: red}", "colour"),
        ("- {name: a, recipe: digits, budget: 2m}\n- {name: a, recipe: digits, budget: 2m}", "name"),
        ("- {name: a, budget: 2m}", "codes_of"),
        ("- {name: a, recipe: digits, budget: 2m, prior: llama}", "codes_of"),
        ("- {name: a, recipe: digits, budget: 2m, codes_of: b}", "codes_of"),
        ("- {name: a, budget: 2m, codes_of: b}", "codes_of"),
        ("- {name: a, recipe: digits, budget: soon}", "budget"),
    ],
)
def test_a_wrong_file_of_trials_is_refused(text: str, field: str, tmp_path: Path) -> None:
    (tmp_path / "trials.yaml").write_text(text)
    with pytest.raises(ConfigError, match=field):
        load_trials(tmp_path / "trials.yaml")


def test_the_kept_trials_can_be_read() -> None:
    for path in sorted((ROOT / "scripts" / "trials").glob("*.yaml")):
        assert load_trials(path), path


def test_a_revision_is_trained_from_its_own_files(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository here, which has the revisions")
    folder = checkout("HEAD", Place(tmp_path, {}))
    assert (folder / "pipeline" / "cli.py").is_file() and folder.is_relative_to(tmp_path)
    assert checkout(None, Place(tmp_path, {})) == ROOT


def test_tables_keep_pretrained_features_apart_and_show_the_spread_of_seeds() -> None:
    features = result(name="two", pretrained=True, figures={"psnr": 20.0}, fields={"seed": 2})
    other = result(name="other", fields={"seed": 1})
    rows = [result(), result(seconds=132.0), other, features]
    text = tables(rows)
    assert "| one, interrupted | 1 |" in tables([result(interrupted=True)])
    first, second = text.split("with features that were trained on other images")
    assert "| one | 2 | 25.00 ± 0.00 |" in first and "2.1 ± 0.1" in first and "two" not in first
    assert "| one | 2 | 25.00 ± 0.00 |" in second and "| two | 1 | 20.00 | - |" in second
    assert "other" in first and "other" not in second
    sized, both = result(name="sized", fields={"width": 96}), {"width": 96, "seed": 2}
    second = tables([result(), sized, result(name="two", pretrained=True, fields=both)]).split("other images")[1]
    assert "| sized |" in second and "| one |" not in second


def test_tables_show_the_ratio_to_the_first_row_and_keep_machines_apart() -> None:
    better = result(name="two", figures={**FIGURES, "rfd": 150.0})
    text = tables([result(), better, result(name="two", machine="4 cores")])
    first, second = text.split("`--budget 1m+1m`, 4 cores, nothing pretrained")
    assert "`--budget 1m+1m`, 2 cores" in first and "| 25.00 | 300.0 | 540.0 |" in first
    assert "| 25.00 | 150.0 (0.50) | 540.0 (1.00) |" in first and "(" not in second


def test_the_tables_of_the_documents_are_those_of_the_kept_results() -> None:
    document = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    kept = sorted((ROOT / "docs" / "results").glob("*.json"))
    assert kept
    for path in kept:
        assert inserted(document, path.stem, tables(kept_rows(path))) == document, path


def test_kept_results_of_other_seeds_stay_and_those_of_a_changed_trial_go(tmp_path: Path) -> None:
    trial, kept = Trial(name="one", recipe="digits", budget="2m", seeds=(0, 1)), tmp_path / "kept.json"
    first, second = Place(tmp_path / "first", {}), Place(tmp_path / "second", {})
    save_result(trial, 0, first, {"figures": FIGURES})
    keep([trial], first, kept)
    save_result(trial, 1, second, {"figures": {**FIGURES, "psnr": 26.0}})
    keep([trial], second, kept)
    assert [(row["seed"], row["figures"]["psnr"]) for row in kept_rows(kept)] == [(0, 25.0), (1, 26.0)]
    keep([dataclasses.replace(trial, fields={"seed": 3})], second, kept)
    assert kept_rows(kept) == []


def test_a_document_without_a_place_is_refused() -> None:
    with pytest.raises(DataError, match="no place"):
        inserted("# Results", "cifar10", "a table")


@pytest.mark.slow
def test_trials_of_digits_are_trained_scored_and_kept(tmp_path: Path) -> None:
    """A recipe, another prior of ours on its codes, and a Llama on them."""
    trials, kept = tmp_path / "trials.yaml", tmp_path / "kept.json"
    others = {"codes_of": "digits", "budget": "60s"}
    rows = [
        {"name": "digits", "recipe": "digits", "budget": "60s"},
        {"name": "smooth", **others, "fields": {"prior.training.label_smoothing": 0.05}},
        {"name": "llama", **others, "prior": "llama"},
    ]
    trials.write_text(json.dumps(rows))
    script = [sys.executable, str(ROOT / "scripts" / "compare_budget.py")]
    queue = [str(trials), "--out", str(tmp_path / "queue")]
    subprocess.run([*script, "run", *queue], check=True, cwd=ROOT)
    subprocess.run([*script, "keep", *queue, "--to", str(kept)], check=True, cwd=ROOT)
    found = {row["name"]: row["figures"] for row in json.loads(kept.read_text())}
    assert found["digits"]["psnr"] > 15
    for name, figures in found.items():
        assert 0 < figures["accuracy"] <= 1 and 0 < figures["bits"] < found["digits"]["bits"] * 2, name
        assert (tmp_path / "queue" / "pictures" / f"{name}-0.png").is_file()
    shown = subprocess.run([*script, "table", str(kept)], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f"| {name} | 1 |" in shown for name in found)
