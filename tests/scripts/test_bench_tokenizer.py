"""The benchmark's yardstick is the same network, and its rows have the agreed form."""

import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_tokenizer

    return bench_tokenizer


@pytest.mark.parametrize("name", ["64 px, VQ 16,384", "32 px, patch 4, FSQ"])
def test_the_reference_has_our_layers(bench, name):
    workload = bench.WORKLOADS[name]
    preprocess = bench.Preprocess(height=workload.side, width=workload.side)
    with torch.device("meta"):
        plain = bench.plain_tokenizer(workload.config)
    with torch.device("cpu"):
        ours = bench.TokenizerModel(workload.config, preprocess)

    def shapes(model):
        networks = (model.encoder, model.decoder)
        return sorted(tuple(each.shape) for network in networks for each in network.parameters())

    width, latent = workload.config.quantizer.width, workload.config.latent_channels
    projections = [(width, latent, 1, 1), (width,), (latent, width, 1, 1), (latent,)]  # ours are in the bottleneck
    assert shapes(plain) == sorted(shapes(ours) + projections)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_trains(bench, ours, precision):
    (workload,) = bench.QUICK.values()
    step = bench.build_step(workload, precision, ours=ours)
    losses = [float(step()) for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.slow  # a benchmark: eight minutes where bf16 is imitated
def test_quick_writes_rows(bench, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(
        sys, "argv", ["bench", "--quick", "--threads", str(torch.get_num_threads()), "--json", str(file)]
    )
    bench.main()
    rows = json.loads(file.read_text())
    keys = {"workload", "unit", "ours", "reference", "reference_name", "ratio", "floor", "config"}
    assert all(set(row) == keys for row in rows)
    speeds = [row for row in rows if row["unit"] == "images/s"]
    assert [row["config"]["precision"] for row in speeds] == ["float32", "bf16"]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["reference"]) for row in speeds)
    assert "share of the matrix peak" in capsys.readouterr().out


def test_cases_in_parts_take_the_same_step(bench):
    (system, *_), sizes = reversed(bench.bench_in_parts.SYSTEMS), {"side": 16, "batch": 2}
    cases = [bench.bench_in_parts.Case(system, passes, again, **sizes) for passes, again in ((1, False), (2, True))]
    losses, gradients = bench.bench_in_parts.all_differences(cases, torch.float32)[1]
    assert losses < 1e-4 and 0 < gradients < 1e-2
