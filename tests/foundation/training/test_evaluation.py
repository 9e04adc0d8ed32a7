"""Evaluations of a training: when they happen, their pictures, and that they change nothing about the training."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.small_training import CONFIG, Numbers, Regression, weights
from support.tiny_prior import column, rows, tiny_task
from support.tiny_prior import train as train_prior

from foundation.errors import ConfigError
from foundation.training.config import FitConfig
from foundation.training.fit import fit
from foundation.training.log import MetricsLog, read_metrics
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.evaluate import PreviewSamples


class Painted(Regression):
    """Draws its first weight; its pictures are counted."""

    n_drawn = 0

    def preview(self, n_images: int) -> Image.Image | None:
        self.n_drawn += 1
        value = int(255 * float(next(self.exported().parameters()).abs().max().clamp(0, 1)))
        return Image.new("L", (n_images, 4), value)


def train(folder: Path, task: Regression, **changes: Any) -> Regression:
    accelerator = task.learner.accelerator
    options: dict[str, Any] = {
        "seed": 3,
        "checkpoints": folder / "checkpoints",
        "log": MetricsLog(folder / "metrics.jsonl", "toy"),
        "identity": lambda steps: {"recipe": "small"},
        "previews": folder / "previews",
    }
    fit(task, Numbers(), dataclasses.replace(CONFIG, **changes), accelerator, **options)
    return task


def test_each_evaluation_has_a_picture_and_its_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, Painted(), preview_images=7)
    found = sorted((tmp_path / "previews").iterdir())
    assert [each.name for each in found] == [f"step-{step:08d}.png" for step in (0, 3, 6, 9, 12)]
    assert {Image.open(each).size for each in found} == {(7, 4)}
    evaluations = read_metrics(tmp_path / "metrics.jsonl", kind="held_out")
    assert all(row["evaluate_seconds"] > 0 for row in evaluations)
    assert "toy: evaluation took " in capsys.readouterr().out


def test_no_picture_is_drawn_where_none_is_wanted_or_the_weights_are_no_good(tmp_path: Path) -> None:
    assert train(tmp_path / "none", Painted(), preview_images=0).n_drawn == 0  # type: ignore[attr-defined]
    assert not (tmp_path / "none" / "previews").exists()

    class Senseless(Painted):
        def headline(self, metrics: Any) -> dict[str, str]:
            return {}

        def is_sound(self, metrics: Any) -> bool:
            return False

    assert train(tmp_path / "senseless", Senseless()).n_drawn == 0  # type: ignore[attr-defined]


def test_the_first_evaluation_can_be_left_out(tmp_path: Path) -> None:
    train(tmp_path, Painted(), evaluate_at_start=False)
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl", kind="held_out")]
    assert steps == [3, 6, 9, 12]
    assert dataclasses.replace(CONFIG, evaluate_at_start=False).n_evaluations == len(steps)
    assert CONFIG.n_evaluations == 5


def test_evaluations_change_nothing_about_the_training(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", Painted(), preview_images=0, evaluate_every=100)
    often = train(tmp_path / "often", Painted(), evaluate_every=1)
    assert torch.equal(weights(plain), weights(often))


def test_sampling_previews_changes_nothing_about_the_training_of_a_prior(tmp_path: Path) -> None:
    seen = []

    def show(codes_BT: torch.Tensor) -> Image.Image:
        seen.append(codes_BT)
        torch.rand(5)  # a decoder that draws numbers
        return Image.new("L", (1, 1))

    for name, samples in (("plain", None), ("shown", PreviewSamples(SamplingConfig(), show))):
        task = tiny_task(torch_accelerator(), dropout=0.3)
        task.samples = samples
        train_prior(tmp_path / name, task, task.accelerator, previews=tmp_path / name / "previews")
    assert rows(tmp_path / "plain") == rows(tmp_path / "shown")
    assert column(tmp_path / "plain", "loss") == column(tmp_path / "shown", "loss")
    assert len(seen) == 5 and not torch.equal(seen[0], seen[-1])
    assert not (tmp_path / "plain" / "previews").exists()
    assert torch.equal(task.preview(8) and seen[-1], seen[-2]), "the same weights give the same samples"


def torch_accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


@pytest.mark.parametrize("field", ["evaluate_images", "preview_images"])
def test_impossible_numbers_of_images_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        FitConfig(**{field: -1})
    assert FitConfig(evaluate_images=3).n_evaluated(10) == 3 and FitConfig().n_evaluated(10) == 10
