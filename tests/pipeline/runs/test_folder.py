"""What a whole run, tiny, leaves: its folder, and what other tools make of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.photographs import CLASSES
from support.tiny_run import TINY

from foundation.codes.dataset import TokenDataset
from foundation.training.log import read_metrics
from pipeline.commands.start import start_run
from stage1_tokenizer.tokenizer import TokenizerModel


def test_the_folder_holds_everything_and_nothing_temporary(finished_run: Path) -> None:
    names = {path.relative_to(finished_run).as_posix() for path in finished_run.rglob("*") if path.is_file()}
    expected = {
        "recipe.yaml",
        "metrics.jsonl",
        "model_index.json",
        "report.html",
        "failed_images.jsonl",
        "tokenizer/config.json",
        "tokenizer/model.safetensors",
        "tokenizer/code_spec.json",
        "tokenizer/canary.safetensors",
        "prior/config.json",
        "prior/model.safetensors",
        "codes/manifest.json",
        "codes/README.md",
        "codes/tokenizer/model.safetensors",
        "codes/data/train/part-00000.parquet",
        "codes/data/validation/part-00000.parquet",
        "samples/grid.png",
        "samples/codes.npy",
        "samples/samples.json",
    }
    assert expected <= names
    assert not [name for name in names if ".tmp-" in name or name.endswith((".pt", ".pkl", ".bin", ".ckpt"))]


def test_metrics_say_whether_a_loss_is_normal(finished_run: Path) -> None:
    first, *_, last = read_metrics(finished_run / "metrics.jsonl", "prior", "held_out")
    assert first["step"] == 0 and last["step"] == 6
    assert first["nats_per_code"] == pytest.approx(np.log(48), abs=1e-4) == first["uniform_nats_per_code"]
    assert last["bits_per_image"] == pytest.approx(16 * last["bits_per_code"])
    assert 0 < last["unigram_bits_per_code"] < np.log2(48)
    tokenizer = read_metrics(finished_run / "metrics.jsonl", "tokenizer", "held_out")[-1]
    assert {"psnr", "code_usage", "code_perplexity"} <= set(tokenizer)


def test_the_codes_decode_with_the_tokenizer_beside_them(finished_run: Path) -> None:
    import torch

    dataset = TokenDataset(finished_run / "codes", "validation")
    tokenizer = TokenizerModel.load(finished_run / "codes" / "tokenizer")
    assert dataset.spec.fingerprint == tokenizer.fingerprint
    assert dataset.spec.class_names == tuple("0123456789")
    images = tokenizer.decode(torch.from_numpy(dataset.grids[:5].astype(np.int64)))
    assert images.shape == (5, 1, 8, 8)


def test_the_sample_grid_has_a_row_per_class(finished_run: Path) -> None:
    about = json.loads((finished_run / "samples" / "samples.json").read_text())
    assert about["labels"] == [label for label in range(10) for _ in range(2)]
    assert Image.open(finished_run / "samples" / "grid.png").size == (2 * 64 + 2, 10 * 64 + 9 * 2)


def test_a_flat_folder_of_mixed_images_runs_unconditionally(mixed_folder: Path, tmp_path: Path) -> None:
    overrides = {
        **TINY,
        "data.source": {"type": "folder", "path": str(mixed_folder)},
        "data.preprocess": {"height": 16, "width": 24, "mode": "RGB"},
        "data.validation_share": 0.2,
        "data.max_failed_share": 0.2,
        "encode.flip": True,
        "encode.images_per_shard": 10,
        "samples.unconditional_images": 4,
    }
    job = start_run("digits", str(tmp_path / "run"), overrides=overrides)
    job.all()
    failed = [json.loads(line) for line in (tmp_path / "run" / "failed_images.jsonl").read_text().splitlines()]
    assert {each["image_id"] for each in failed} == {"corrupt.png", "empty.jpg"}
    dataset = TokenDataset(tmp_path / "run" / "codes", "train")
    held_out = TokenDataset(tmp_path / "run" / "codes", "validation")
    assert dataset.labels_N is None
    assert len(dataset) == 2 * len(set(dataset.image_ids)) and len(set(dataset.image_ids)) + len(held_out) == 30
    assert sorted(set(dataset.views_N.tolist())) == [0, 1]
    assert len(list((tmp_path / "run" / "codes" / "data" / "train").iterdir())) == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "corrupt.png" in page and "empty.jpg" in page
    assert json.loads((tmp_path / "run" / "samples" / "samples.json").read_text())["labels"] == [None] * 4


def test_photographs_of_a_dataset_run(photographs: Path, tmp_path: Path) -> None:
    overrides = {
        **{name: value for name, value in TINY.items() if not name.startswith("samples")},
        "data.source": {
            "type": "dataset",
            "path": str(photographs),
            "label_column": "label",
            "validation_split": "validation",
            "limit": 200,
        },
        "data.preprocess": {"height": 32, "width": 32, "mode": "RGB"},
        "samples.images_per_class": 1,
    }
    job = start_run("digits", str(tmp_path / "run"), overrides=overrides)
    job.all()
    assert TokenDataset(tmp_path / "run" / "codes").spec.class_names == CLASSES
