import math
from pathlib import Path

from foundation.training.log import MetricsLog, read_metrics


def test_lines_are_read_by_stage_and_kind_and_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    tokenizer, prior = (MetricsLog(tmp_path / "metrics.jsonl", stage) for stage in ("tokenizer", "prior"))
    tokenizer.write("train", 0, {"loss": 1.5, "norm": math.inf})
    tokenizer.warn(0, "too high")
    prior.write("held_out", 4, {"nll": math.nan})
    assert read_metrics(tokenizer.path, "tokenizer", "train") == [
        {"stage": "tokenizer", "kind": "train", "step": 0, "loss": 1.5, "norm": None}
    ]
    assert [row["kind"] for row in read_metrics(tokenizer.path, "tokenizer")] == ["train", "warning"]
    assert read_metrics(tokenizer.path, kind="held_out")[0]["nll"] is None


def test_a_resumed_stage_forgets_its_own_later_lines_only(tmp_path: Path) -> None:
    tokenizer, prior = (MetricsLog(tmp_path / "metrics.jsonl", stage) for stage in ("tokenizer", "prior"))
    for step in range(4):
        tokenizer.write("train", step, {})
        prior.write("train", step, {})
    tokenizer.forget_from(2)
    assert [row["step"] for row in read_metrics(tokenizer.path, "tokenizer")] == [0, 1]
    assert [row["step"] for row in read_metrics(tokenizer.path, "prior")] == [0, 1, 2, 3]


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, "prior").write("train", 0, {"nll": 2.0})
    path.write_text(path.read_text() + '[1]\n{"stage": "prior"}\n{"stage": "prior", "kind": "tr')
    assert [row["nll"] for row in read_metrics(path)] == [2.0]
    assert read_metrics(tmp_path / "none") == []


def test_a_log_that_is_off_writes_nothing(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl", "prior", enabled=False).write("train", 0, {})
    assert not list(tmp_path.iterdir())
