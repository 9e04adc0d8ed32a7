"""The rows have the agreed form, and everything that is compared encodes the same."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.codes.dataset import TokenDataset

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_encode

    return bench_encode


def test_quick_writes_rows(bench, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(bench, "fastest_batch_size", lambda tokenizer: 4)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--images", "8", "--json", str(file)])
    threads = torch.get_num_threads()
    bench.main()
    assert torch.get_num_threads() == threads
    rows = json.loads(file.read_text())
    keys = {"workload", "unit", "ours", "reference", "reference_name", "ratio", "floor", "config"}
    assert len(rows) == 2 and all(set(row) == keys for row in rows)
    speed, size = rows
    assert speed["ratio"] == pytest.approx(speed["ours"] / speed["reference"])
    assert speed["config"]["share_of_floor"] == pytest.approx(speed["ours"] / speed["floor"])
    assert size["ratio"] == pytest.approx(size["reference"] / size["ours"]) and size["ours"] > size["floor"] == 320
    assert "two .npy an image" in capsys.readouterr().out


def test_a_full_file_needs_at_most_330_bytes_an_image(bench, tmp_path):
    assert bench.size(tmp_path, 8192).ours <= 330


def test_the_field_s_files_hold_the_same_codes(bench, tmp_path):
    from pipeline.encoding.export import Export
    from pipeline.encoding.plan import EncodeConfig

    tokenizer = bench.TokenizerModel(bench.QUICK.config, bench.Preprocess(height=32, width=32)).eval()
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    source = bench.write_images(tmp_path / "images", 6, 32)
    bench.field_export(tokenizer, source, tmp_path / "field", torch.device("cpu"))
    config = EncodeConfig(batch_size=4, flip=True)
    assert Export(
        tmp_path / "tokenizer", {"train": source}, tmp_path / "codes", config, torch.device("cpu")
    ).take_part()
    dataset = TokenDataset(tmp_path / "codes")
    for i in range(6):
        assert np.array_equal(np.load(tmp_path / "field" / f"{i}.npy")[0], dataset.codes_NT[[i, 6 + i]])
        assert np.load(tmp_path / "field" / f"label-{i}.npy")[0] == dataset.labels_N[i]
