"""The benchmark's yardstick is the same transformer with the same work, and its rows have the agreed form."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from foundation.training import linear
from stage2_prior import block
from stage2_prior.prior import PriorModel

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
            theirs, _ = bench.llama_model(workload, "eager")
            plain, _ = bench.plain_model(workload)

        def inner(model):
            return sum(each.numel() for each in model.parameters() if each.ndim == 2)

        embeddings = ours.class_embedding.weight.numel()
        assert inner(ours) - embeddings == inner(theirs) == inner(plain)
        (n_layers, _, width), n_tokens = workload.config.shape, workload.n_tokens
        products = inner(theirs) - workload.vocab_size * width  # all but the table of codes
        attention = 12 * n_layers * width * workload.side**2
        assert workload.step_flops == n_tokens * (6 * products + attention)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_all_start_at_the_same_task_and_learn(bench, precision):
    (workload,) = bench.QUICK.values()
    kinds = (("ours", "sdpa"), ("plain", "sdpa"), ("llama", "eager"))
    steps = [bench.build_step(workload, bench.Case(kind, precision, attention)) for kind, attention in kinds]
    first = [float(step()) for step in steps]
    assert first == pytest.approx([6.93] * 3, abs=0.3), "about ln 1,024"
    for step, start in zip(steps, first, strict=True):
        for _ in range(10):
            last = float(step())
        assert last < start


def test_the_plain_transformer_computes_what_ours_does(bench):
    (workload,) = bench.QUICK.values()
    workload = dataclasses.replace(workload, config=dataclasses.replace(workload.config, dropout=0.0))
    ours, _ = bench.our_model(workload)
    plain, loss_of = bench.plain_model(workload)
    torch.nn.init.normal_(ours.head.weight, std=0.1)
    state = {name.replace("attention.", "").replace("feed_forward.", ""): x for name, x in ours.state_dict().items()}
    table = {name: state[name] for name in plain.state_dict() if name != "codes.weight"}
    plain.load_state_dict({**table, "codes.weight": ours.code_embedding.weight})
    tokens = torch.randint(1024, (2, 64))
    with torch.no_grad():
        ours.class_embedding.weight.zero_()
        plain.codes.weight[tokens[:, -1]] = 0  # what stands in for the class
        ours.code_embedding.weight.copy_(plain.codes.weight)
        turns = plain.turns_TA.roll(1, 0).clone()
        turns[0] = 1  # ours rotates an input by the place of the code that it is
        plain.turns_TA.copy_(turns)
        logits = ours.eval()(tokens)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        torch.testing.assert_close(loss_of(tokens), expected)


def test_quick_writes_rows_of_the_agreed_form(bench, monkeypatch, tmp_path, capsys):
    peak = partial(bench.matmul_peak, size=256)  # a large product takes long where bf16 is imitated
    monkeypatch.setattr(bench, "matmul_peak", peak)
    monkeypatch.setattr(sys, "argv", ["bench_prior.py", "--quick", "--json", str(tmp_path / "rows.json")])
    bench.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["unit"] for row in rows] == ["tokens/s", "MiB above imports"] * 2
    for row in rows:
        assert set(row) == FIELDS and min(row["ours"], row["reference"], row["ratio"]) > 0
    assert "share of the matrix peak" in capsys.readouterr().out


def test_the_bench_of_kernels_takes_them_away_one_by_one(bench, monkeypatch, tmp_path):
    import bench_kernels

    file, kernels = tmp_path / "rows.json", [bench_kernels.NONE, "dropout", "loss"]
    monkeypatch.setattr(bench_kernels, "WITHOUT", {kernel: bench_kernels.WITHOUT[kernel] for kernel in kernels})
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--quick", "--precision", "float32", "--json", str(file)])
    bench_kernels.main()
    rows = json.loads(file.read_text())
    named = ["without dropout", "without dropout", "without loss", "without loss"]
    assert [row["reference_name"] for row in rows] == named
    assert all(set(row) == FIELDS and min(row["ours"], row["reference"]) > 0 for row in rows)


@pytest.mark.parametrize("kernel", ["dropout", "heads", "attention", "products", "loss"])
def test_without_a_kernel_the_step_has_the_same_loss(bench, monkeypatch, kernel):
    import bench_kernels

    (workload,) = bench.QUICK.values()
    workload = dataclasses.replace(workload, config=dataclasses.replace(workload.config, dropout=0.0))
    for owner, name in (
        (block.Dropout, "forward"),
        (block, "split_heads"),
        (block, "attention"),
        (PriorModel, "loss_of"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back after the test
    monkeypatch.setattr(linear, "prefers_onednn", linear.prefers_onednn)
    losses = []
    for without in (bench_kernels.NONE, kernel):
        bench_kernels.WITHOUT[without]()
        step = bench.build_step(workload, bench.Case("ours", "float32"))
        losses.append([float(step()) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
