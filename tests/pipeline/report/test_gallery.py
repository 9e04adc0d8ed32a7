"""The gallery of a run: completions, inpainting, another class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from pipeline import ImageGenerator
from pipeline.report.gallery import draw_gallery, gallery_pictures
from pipeline.report.report import write_report
from pipeline.runs.folder import RunFolder
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel

SMALL = {
    "base_width": 8,
    "width_multipliers": [1, 2],
    "n_res_blocks": 1,
    "latent_channels": 8,
    "norm_groups": 4,
    "quantizer": {"type": "fsq", "levels": [4, 4, 3]},
}


def test_the_report_shows_what_can_be_done(run_copy: Path) -> None:
    folder = RunFolder(run_copy)
    captions = json.loads((folder.gallery / "captions.json").read_text())
    assert list(captions) == ["completion", "inpainting", "variations", "classes"]
    sizes = {name: Image.open(folder.gallery / f"{name}.png").size for name in captions}
    assert sizes["completion"] == (5 * 50 - 2, 6 * 50 - 2) and sizes["classes"] == (11 * 50 - 2, 6 * 50 - 2)
    page = folder.report.read_text()
    assert ">Edits</h2>" in page and all(caption in page for caption in captions.values())
    import shutil

    shutil.rmtree(folder.gallery)
    write_report(folder)
    assert ">Edits</h2>" not in folder.report.read_text() and gallery_pictures(folder.gallery) == []


def test_the_upper_half_in_the_picture_of_completion_is_the_image_s(run_copy: Path) -> None:
    picture = np.asarray(Image.open(RunFolder(run_copy).gallery / "completion.png"))
    image, kept = picture[:48, :48], picture[:48, 50:98]
    assert np.array_equal(kept[:24], image[:24]) and bool((kept[24:] == 128).all())


def test_a_prior_without_a_null_class_shows_what_it_can(finished_run: Path, tmp_path: Path) -> None:
    generator = ImageGenerator.from_pretrained(finished_run)
    sure = ImageGenerator(generator.tokenizer, generator.prior, label_dropout=0)
    draw_gallery(sure, np.zeros((2, 8, 8, 1), np.uint8), tmp_path / "gallery", seed=0)
    assert {path.stem for path in (tmp_path / "gallery").glob("*.png")} == {"completion", "classes"}


def test_a_grid_of_one_row_is_shown_without_completions(tmp_path: Path) -> None:
    tokenizer = TokenizerModel(from_dict(TokenizerConfig, SMALL), Preprocess(height=2, width=8, mode="L"))
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), tokenizer.spec.with_classes(("a", "b")))
    generator = ImageGenerator(tokenizer, prior, label_dropout=0.1)
    draw_gallery(generator, np.zeros((2, 2, 8, 1), np.uint8), tmp_path / "gallery", seed=0)
    assert {path.stem for path in (tmp_path / "gallery").glob("*.png")} == {"inpainting", "variations", "classes"}
    with pytest.raises(ConfigError, match="the grid has one row"):
        generator.complete(torch.zeros(1, 1, 2, 8), rows=0.5)
