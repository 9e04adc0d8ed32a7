"""rFID in training: measured where its weights are, left out with a sentence where they are not, never downloaded."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluation.distances import FeatureMoments, frechet_distance
from pipeline.evaluation.extractors import SmallConfig, build_extractor
from pipeline.evaluation.in_training import ReconstructionFID, open_rfid
from pipeline.runs.recipe import Recipe, load_recipe

CPU = torch.device("cpu")


def recipe(wanted: str) -> Recipe:
    return load_recipe("digits", {"tokenizer.training.evaluate_rfid": wanted})


def test_weights_that_are_not_here_are_named_and_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    distance, note = open_rfid(recipe("always"), 100, CPU)
    assert distance is None and note.startswith("evaluation without rFID: InceptionV3's weights are not here")
    assert not list(tmp_path.rglob("*.pth"))


def test_nothing_is_said_where_it_is_not_wanted() -> None:
    assert open_rfid(recipe("never"), 100, CPU) == (None, "")
    assert open_rfid(recipe("auto"), 100, CPU) == (None, ""), "a CPU takes longer for Inception than for a tokenizer"


def test_one_image_has_no_distance() -> None:
    distance, note = open_rfid(recipe("always"), 1, CPU)
    assert distance is None and "2 images or more" in note


def test_the_figure_is_that_of_all_features() -> None:
    distance = ReconstructionFID(build_extractor(SmallConfig()))
    images, others = torch.rand(2, 90, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = [distance.features(each).numpy() for each in (images, others * 0.5)]
    moments = [FeatureMoments(64), FeatureMoments(64)]
    for each, rows in zip(moments, features, strict=True):
        for part in np.array_split(rows, 3):
            each.update(part)
    assert distance.figures(*features) == {"rfid_small": pytest.approx(frechet_distance(*moments))}
