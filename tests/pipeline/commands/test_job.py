"""What a training command says at its end."""

import json
from pathlib import Path

import pytest

from pipeline.commands.job import poor_prior
from pipeline.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("bits", "says"),
    [([6.0, 5.0], None), ([8.0, 7.5], "more steps"), ([7.2, 7.9], "more images, a smaller prior or fewer steps")],
)
def test_a_prior_no_better_than_frequencies_is_said_to_be_poor(
    bits: list[float], says: str | None, tmp_path: Path
) -> None:
    rows = [
        {"stage": "prior", "kind": "held_out", "step": step, "bits_per_code": each, "unigram_bits_per_code": 7.0}
        for step, each in enumerate(bits)
    ]
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    notes = poor_prior(folder)
    assert notes == [] if says is None else notes[0].endswith(f"it needs {says}")


def test_a_run_without_evaluations_has_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert poor_prior(RunFolder(tmp_path)) == []
