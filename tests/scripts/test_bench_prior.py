"""The benchmark's yardstick is the same transformer with the same work, and its rows have the agreed form."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
FIELDS = {"workload", "unit", "ours", "reference", "reference_name", "ratio", "floor", "config"}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_prior

    return bench_prior


def test_the_reference_has_our_matrices_and_the_counted_operations(bench):
    for workload in bench.WORKLOADS.values():
        with torch.device("meta"):
            ours, _ = bench.our_model(workload)
            theirs, _ = bench.reference_model(workload, "eager")

        def inner(model):
            return sum(each.numel() for each in model.parameters() if each.ndim == 2)

        embeddings = ours.class_embedding.weight.numel()
        assert inner(ours) - embeddings == inner(theirs)
        (n_layers, _, width), n_tokens = workload.config.shape, workload.n_tokens
        products = inner(theirs) - workload.vocab_size * width  # all but the table of codes
        attention = 12 * n_layers * width * workload.side**2
        assert workload.step_flops == n_tokens * (6 * products + attention)


@pytest.mark.parametrize("mode", [("float32", "sdpa"), ("bf16", "eager")])
def test_both_start_at_the_same_task_and_learn(bench, mode):
    (workload,) = bench.QUICK.values()
    ours = bench.build_step(workload, (mode[0], ""), ours=True)
    theirs = bench.build_step(workload, mode, ours=False)
    first = [float(step()) for step in (ours, theirs)]
    assert first == pytest.approx([6.93, 6.93], abs=0.3), "about ln 1,024"
    for step, start in zip((ours, theirs), first, strict=True):
        for _ in range(10):
            last = float(step())
        assert last < start


def test_quick_writes_rows_of_the_agreed_form(bench, monkeypatch, tmp_path, capsys):
    peak = partial(bench.matmul_peak, size=256)  # a large product takes long where bf16 is imitated
    monkeypatch.setattr(bench, "matmul_peak", peak)
    monkeypatch.setattr(sys, "argv", ["bench_prior.py", "--quick", "--json", str(tmp_path / "rows.json")])
    bench.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["unit"] for row in rows] == ["tokens/s", "MiB above imports"]
    for row in rows:
        assert set(row) == FIELDS and min(row["ours"], row["reference"], row["ratio"]) > 0
    assert "share of the matrix peak" in capsys.readouterr().out
