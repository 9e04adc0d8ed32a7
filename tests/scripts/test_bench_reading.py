"""The rows have the agreed form, and both sides crop the same."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_reading

    return bench_reading


def test_quick_writes_rows(bench, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    small = dataclasses.replace(bench.QUICK, images=8, batch_size=4, seconds=0.2, steps=2)
    monkeypatch.setattr(bench, "QUICK", small)
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: None)  # of this process, and cannot be undone
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--workers", "1", "--json", str(file)])
    bench.main()
    rows = json.loads(file.read_text())
    keys = {"workload", "unit", "ours", "reference", "reference_name", "ratio", "floor", "config"}
    assert len(rows) == 5 and all(set(row) == keys for row in rows)
    assert all(row["ours"] > 0 for row in rows) and rows[0]["ratio"] == rows[0]["ours"] / rows[0]["reference"]
    assert rows[2]["ratio"] == rows[2]["reference"] / rows[2]["ours"]


@pytest.mark.parametrize("own", [False, True])
def test_both_sides_crop_the_same_of_any_pictures(bench, tmp_path, own):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    bench.Image.fromarray(noise).save(pictures / "one.png")
    folder = tmp_path / "jpegs"
    folder.mkdir()
    bench.write_photographs(folder, 3, pictures if own else None)
    augment = dataclasses.replace(bench.AUGMENT, flip=False)
    images = bench.ImageSet(bench.FolderSource(str(folder)), bench.PREPROCESS, augment=augment)
    indices, epochs = np.arange(3), np.zeros(3, int)
    batch, draws = images.batch(indices, epochs)["images"].numpy(), bench.view_draws(augment, indices, epochs, 0)
    for i, path in enumerate(sorted(folder.iterdir())):
        with bench.Image.open(path) as image:
            assert image.size == (500, 375)
        assert np.array_equal(bench.decode(path, draws[i]), batch[i])
