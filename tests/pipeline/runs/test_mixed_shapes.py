"""A run on portraits and landscapes, from the folder to samples of both, and its report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.picture_runs import QUICK
from support.several_shapes import make_pictures

from foundation.codes.dataset import TokenDataset
from foundation.errors import ConfigError
from foundation.images.listing import Listing
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.commands.start import start_run

SHAPES = {"data.preprocess": {"height": 8, "width": 12, "shapes": [[12, 8]]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    images = make_pictures(folder / "images", 9)
    overrides = {**QUICK, **SHAPES, "data.source": {"type": "folder", "path": str(images)}}
    job = start_run("digits", str(folder / "run"), overrides=overrides)
    job.all()
    job.run.release()
    return folder / "run"


def test_listing_codes_and_samples_know_the_shapes(run: Path) -> None:
    listing = Listing.load(run / "images.parquet")
    images = listing.splits["train"]
    sizes = [Image.open(run.parent / "images" / name).size for name in images.ids]
    assert images.buckets.tolist() == [int(height > width) for width, height in sizes]
    assert pq.read_table(run / "images.parquet")["grid"].null_count == 0
    codes = TokenDataset(run / "codes")
    assert sorted(np.unique(codes.grids_N)) == [0, 1]
    about = json.loads((run / "samples" / "samples.json").read_text())
    assert [each["shape"] for each in about["shapes"]] == [[8, 12], [12, 8]]
    assert np.load(run / "samples" / "codes.npy").shape[1] == 24
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "8 x 12 pixels" in report and "12 x 8 pixels" in report


def test_the_generator_of_a_run_samples_in_its_proportions(run: Path) -> None:
    generator = ImageGenerator.from_pretrained(run)
    assert generator.shapes == ((8, 12), (12, 8))
    assert generator.grid_counts == tuple(np.bincount(TokenDataset(run / "codes").grids_N).tolist())


def test_a_finished_run_runs_again_and_is_evaluated(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["run", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "grids of 4 x 6 codes" in shown and "grids of 6 x 4 codes" in shown


@pytest.mark.slow
def test_guidance_is_tuned_on_samples_of_every_shape(run: Path) -> None:
    assert main(["tune-guidance", str(run), "--images", "12", "--repeats", "2", "--dry-run"]) == 0


def test_an_interrupted_training_ends_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for name in ("tokenizer", "codes", "prior", "samples"):
        shutil.rmtree(again / name)
    newest = sorted((again / "checkpoints" / "tokenizer").glob("step-*"))[-1]
    assert newest.name.endswith("2")
    shutil.rmtree(newest)
    overrides = {**QUICK, **SHAPES, "data.source": {"type": "folder", "path": str(run.parent / "images")}}
    job = start_run("digits", str(again), overrides=overrides)
    job.train_tokenizer()
    job.run.release()
    weights = [(each / "tokenizer" / "model.safetensors").read_bytes() for each in (run, again)]
    assert weights[0] == weights[1]


def test_shapes_that_cannot_work_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images", 2)
    source = {"data.source": {"type": "folder", "path": str(tmp_path / "images")}}
    odd = {"data.preprocess": {"height": 8, "width": 18, "shapes": [[9, 16]]}}
    with pytest.raises(ConfigError, match=r"shapes\[0\](.|\n)*multiple of 2(.|\n)*shapes such as 8 x 18, 12 x 12"):
        start_run("digits", str(tmp_path / "a"), overrides={**QUICK, **odd, **source}).all()
    model = {**QUICK["tokenizer.model"], "coarse_halvings": 1}
    with pytest.raises(ConfigError, match=r"shapes(.|\n)*a tokenizer of one grid"):
        shaped = {"data.preprocess": {"height": 16, "width": 24, "shapes": [[24, 16]]}, "tokenizer.model": model}
        start_run("digits", str(tmp_path / "b"), overrides={**QUICK, **shaped, **source}).all()
