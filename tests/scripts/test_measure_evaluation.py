"""The share of evaluations is that of a whole training, from the times of a short one."""

import json
import sys
from pathlib import Path

import pytest

from foundation.training.config import FitConfig

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_the_share_is_that_of_all_evaluations_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import measure_evaluation

    lines, seconds = [], 0.0
    for step in range(6):
        if step % 2 == 0:
            seconds += 5.0
            lines.append({"stage": "prior", "kind": "held_out", "step": step, "evaluate_seconds": 5.0})
        seconds += 0.5
        lines.append({"stage": "prior", "kind": "train", "step": step, "seconds": seconds})
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    row = measure_evaluation.row_of(metrics, "prior", FitConfig(steps=400, evaluate_every=100), 7)
    assert row == {"stage": "prior", "step": 0.5, "evaluation": 5.0, "images": 7, "share": 25 / 225}


@pytest.mark.slow
def test_a_recipe_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import measure_evaluation

    monkeypatch.setattr(sys, "argv", ["x", "digits", "--quick", "--json", str(tmp_path / "rows.json")])
    measure_evaluation.main()
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["stage"] for row in rows] == ["tokenizer", "prior"] and all(0 < row["share"] < 1 for row in rows)
