"""Expected and taken times of a run, over restarts."""

from pathlib import Path

import pytest

from pipeline.planning.ledger import Ledger, read_times, time_rows
from pipeline.planning.times import EVALUATE_TOKENIZER, START, TRAIN_TOKENIZER


def test_times_add_up_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    first = Ledger(path)
    first.expect({START: 2.0, TRAIN_TOKENIZER: 30.0, EVALUATE_TOKENIZER: 10.0})
    first.add("tokenizer", 25.0)
    again = Ledger(path)
    again.add("tokenizer", 20.0)
    assert again.spent == 45.0 == read_times(path)["taken"]["tokenizer"]
    assert time_rows(read_times(path)) == [
        ("start", "2 s", ""),
        ("tokenizer", "40 s", "45 s"),
        ("in all", "42 s", "45 s"),
    ]


def test_an_interrupted_part_is_counted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "times.json")
    with pytest.raises(KeyboardInterrupt), ledger.part("prior"):
        raise KeyboardInterrupt
    assert ledger.taken["prior"] > 0 and read_times(tmp_path / "times.json")["taken"] == ledger.taken


def test_a_damaged_file_loses_times_only(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text("{")
    assert read_times(path) == {} and Ledger(path).spent == 0
    assert Ledger(None).spent == 0
