"""The search finds the best of what it tries; it becomes the run's default, and the old one is not lost."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from foundation.errors import ConfigError, DataError
from pipeline import ImageGenerator
from pipeline.commands.start import start_run
from pipeline.evaluation.guidance import (
    LOG,
    SCALES,
    SCHEDULES,
    TABLE,
    SampleJudge,
    Scored,
    Tuning,
    class_draws,
    is_beaten,
    search,
    tune_guidance,
)
from pipeline.generation.files import read_index
from pipeline.runs.folder import RunFolder
from stage2_prior.decoding.sampling import SamplingConfig


class Bowl:
    """A judge whose best setting is known: linear at a scale of 2.4."""

    def __init__(self) -> None:
        self.asked: list[SamplingConfig] = []

    def distance(self, sampling: SamplingConfig, seed: int) -> float:
        self.asked.append(sampling)
        return abs(sampling.guidance_scale - 2.4) + (0.5 if sampling.schedule != "linear" else 0.0)


def test_the_search_finds_the_bottom_of_a_bowl() -> None:
    judge = Bowl()
    tried = search(judge, SamplingConfig(temperature=0.9, top_k=5), [0])  # type: ignore[arg-type]
    best = min(tried, key=lambda each: each.distance)
    assert best.sampling.schedule == "linear" and abs(best.sampling.guidance_scale - 2.4) <= 0.15
    assert best.distance == min(Bowl().distance(each, 0) for each in judge.asked)
    assert all((each.temperature, each.top_k) == (0.9, 5) for each in judge.asked), "only guidance is searched"
    assert len(judge.asked) == 1 + len(SCHEDULES) * (len(SCALES) - 1) + 4
    assert len(set(judge.asked)) == len(judge.asked), "nothing is measured twice"


def tune(run: Path, monkeypatch: pytest.MonkeyPatch, found: float, noise: float = 0.0) -> SamplingConfig:
    bowl = lambda self, sampling, seed: abs(sampling.guidance_scale - found) + noise * (seed % 7 - 3)  # noqa: E731
    monkeypatch.setattr(SampleJudge, "distance", bowl)
    return tune_guidance(str(run), Tuning(images=8), "cpu").sampling


def test_what_is_found_is_the_default_and_survives_the_next_run(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RunFolder(run_copy).load_recipe().samples.sampling
    found = tune(run_copy, monkeypatch, 3.0)
    assert found.guidance_scale == 3.0 and recipe.guidance_scale == 2.0
    assert ImageGenerator.from_pretrained(run_copy).defaults == found
    start_run(str(run_copy)).all()
    assert ImageGenerator.from_pretrained(run_copy).defaults == found, "the same recipe keeps what was tuned"
    assert tune(run_copy, monkeypatch, 1.25).guidance_scale == 1.25
    assert read_index(run_copy).tuned_from == recipe
    lines = [json.loads(line) for line in (run_copy / LOG).read_text().splitlines()]
    assert [(line["old"]["guidance_scale"], line["new"]["guidance_scale"]) for line in lines] == [(2, 3), (3, 1.25)]


def test_what_is_not_better_is_not_kept(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run_copy / "model_index.json").read_bytes()
    assert tune(run_copy, monkeypatch, 2.0).guidance_scale == 2.0
    assert (run_copy / "model_index.json").read_bytes() == before and not (run_copy / LOG).exists()


def test_a_difference_within_its_noise_changes_nothing(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise is each setting's own, so that pairs do not cancel it."""
    before = (run_copy / "model_index.json").read_bytes()

    def noisy(self: SampleJudge, sampling: SamplingConfig, seed: int) -> float:
        luck = np.random.default_rng([seed, int(1000 * sampling.guidance_scale)]).normal()
        return 10 - 0.01 * sampling.guidance_scale + luck

    monkeypatch.setattr(SampleJudge, "distance", noisy)
    settled = tune_guidance(str(run_copy), Tuning(images=8, repeats=6), "cpu")
    assert (run_copy / "model_index.json").read_bytes() == before and not (run_copy / LOG).exists()
    assert settled.sampling.guidance_scale == 2.0
    table = json.loads((run_copy / TABLE).read_text())
    assert table["changed"] is False and len(table["tried"]) == 30
    assert all(len(row["distances"]) == 6 and row["error"] > 0 for row in table["tried"])
    found = table["fresh"]["found"]
    assert found["mean"] != min(row["mean"] for row in table["tried"]), "judged with fresh random numbers"


def test_the_default_changes_beyond_twice_the_error_of_the_pairs(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tune(run_copy, monkeypatch, 3.0, noise=5.0).guidance_scale == 3.0, "noise that pairs share does not count"
    old, better, same = (Scored(SamplingConfig(), each) for each in ((5.0, 6.0, 7.0), (4.0, 5.1, 5.9), (4.0, 7.0, 6.9)))
    assert (
        is_beaten(old, better) and not is_beaten(old, same) and not is_beaten(better, old) and not is_beaten(old, old)
    )
    assert better.error == pytest.approx(np.std((4.0, 5.1, 5.9), ddof=1) / 3**0.5)


def test_classes_are_drawn_as_the_data_has_them() -> None:
    shares = np.array([70.0, 0.0, 25.0, 5.0])
    for seed in range(5):
        assert np.bincount(class_draws(shares, 100, seed), minlength=4).tolist() == pytest.approx([70, 0, 25, 5], abs=1)
    few = np.bincount([class_draws(shares, 2, seed)[i] for seed in range(400) for i in (0, 1)], minlength=4) / 800
    assert few.tolist() == pytest.approx([0.7, 0, 0.25, 0.05], abs=0.05), "a rare class has its turn"


def test_nothing_is_warned_of_and_the_table_names_its_errors(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tune_guidance(str(run_copy), Tuning(images=20, repeats=2), "cpu", write=False)
    said = capsys.readouterr().out
    assert "standard error of 2 repeats" in said and "fewer samples than features" in said and said.count(" +- ") > 30
    assert not (run_copy / TABLE).exists(), "a dry run writes nothing"


def test_the_distance_is_small_where_samples_are_the_images(finished_run: Path) -> None:
    """Images of the generator itself as the reference: fresh draws of it are nearer than draws without variety."""
    from foundation.images.image_set import open_image_sets
    from pipeline.evaluation.extractors import SmallConfig, build_extractor

    generator = ImageGenerator.from_pretrained(finished_run)
    generator.set_progress_bar_config(disable=True)
    train, _ = open_image_sets(RunFolder(finished_run).load_recipe().data)
    judge = SampleJudge(generator, train, build_extractor(SmallConfig()), 100)
    judge._real = type(judge._real)(64)
    judge._add(judge._real, generator(list(range(10)), 30, seed=10_000, output_type="pt", guidance_scale=1.0).images)
    plain = judge.distance(SamplingConfig(), 0)
    assert plain < 0.5 * judge.distance(SamplingConfig(temperature=0.0), 0)
    assert judge.distance(SamplingConfig(), 0) == plain


def test_a_prior_that_cannot_be_guided_is_refused(run_copy: Path) -> None:
    index = run_copy / "model_index.json"
    values = json.loads(index.read_text())
    assert values["label_dropout"] == 0.1
    values["sampling"]["guidance_scale"] = 1.0
    index.write_text(json.dumps({**values, "label_dropout": 0}))
    with pytest.raises(ConfigError, match="label_dropout"):
        tune_guidance(str(run_copy), Tuning(images=8), "cpu")
    with pytest.raises(ConfigError, match="guidance_scale"):
        ImageGenerator.from_pretrained(run_copy)(3, guidance_scale=2.0)
    del values["label_dropout"]
    index.write_text(json.dumps(values))
    assert ImageGenerator.from_pretrained(run_copy)(3, guidance_scale=2.0).labels == [3], "an older run says nothing"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"images": 1}, "images"),
        ({"extractor": "resnet"}, "extractor"),
        ({"extractor": "none"}, "extractor"),
        ({"seed": -1}, "seed"),
        ({"repeats": 1}, "repeats"),
        ({"images": 10**9}, "fit in memory"),
    ],
)
def test_wrong_searches_are_refused_by_name(finished_run: Path, change: dict, field: str) -> None:
    with pytest.raises((ConfigError, DataError), match=field):
        tune_guidance(str(finished_run), Tuning(**change), "cpu")
