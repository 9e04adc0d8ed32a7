"""A run with a budget: fitted once, a function of its recipe, resumed exactly, its prior fitted to what is left."""

from pathlib import Path

import pytest
import torch

from foundation.errors import ConfigError
from pipeline.cli import main
from pipeline.commands.start import start_run
from pipeline.planning import budget
from pipeline.planning.ledger import read_times
from pipeline.planning.measure import PriorSpeed, TokenizerSpeed
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import load_recipe
from stage1_tokenizer.tokenizer import TokenizerModel

SMALL = {
    "tokenizer.model.networks": {"type": "vqgan", "base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1},
    "tokenizer.model.networks.norm_groups": 4,
    "tokenizer.model.quantizer": {"type": "fsq", "levels": [4, 4, 3]},
    "prior.model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.1},
    "samples.images_per_class": 2,
    "budget": "10m",
}
SPEEDS = TokenizerSpeed(3.0, 3.0, 1e-4, 1e-4, 2e-4), PriorSpeed(3.0, 1e-4, 1e-3)
"""of a machine so slow that a budget of minutes holds less than a hundred small steps of each stage"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("budget") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "measure_tokenizer", lambda *arguments: SPEEDS[0])
        patch.setattr(budget, "measure_prior", lambda *arguments: SPEEDS[1])
        job = start_run("digits", str(folder), SMALL)
        job.all()
        job.run.release()
    return RunFolder(folder)


def test_a_run_keeps_about_to_its_budget_and_says_so(finished: RunFolder) -> None:
    times = read_times(finished.times)
    assert set(times["expected"]) == set(times["taken"])
    assert "Time" in finished.report.read_text() and "The budget was 10m" in finished.report.read_text()
    recipe = finished.load_recipe()
    assert recipe.budget == "10m" and recipe.tokenizer.training.precision == "float32"
    assert recipe.tokenizer.training.fit.steps != load_recipe("digits").tokenizer.training.fit.steps


def test_the_same_command_continues_without_measuring_again(finished: RunFolder) -> None:
    before = finished.recipe.read_bytes()
    job = start_run("digits", str(finished.root), SMALL)
    assert job.fitted is None
    job.all()
    job.run.release()
    assert finished.recipe.read_bytes() == before


def test_another_budget_keeps_the_run_and_says_how_to_go_on(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    start_run("digits", str(finished.root), {**SMALL, "budget": "2h"}).run.release()
    assert "fits the budget that it began with, 10m" in capsys.readouterr().out


def test_the_result_is_a_function_of_the_recipe(finished: RunFolder, tmp_path: Path) -> None:
    """The recipe that was written, run elsewhere without a choice to make, gives the same weights."""
    folder = RunFolder(tmp_path / "again")
    overrides = {"tokenizer.training.fit.checkpoint_every": 3}
    start_run(str(finished.root), str(folder.root), overrides).train_tokenizer()
    one, other = (TokenizerModel.load(each.tokenizer).state_dict() for each in (finished, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_budget_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "-o", str(tmp_path / "run"), "--budget", "soon"]) == 2
    said = capsys.readouterr().err
    assert "--budget" in said and "soon" in said and "20m" in said
    with pytest.raises(ConfigError):
        load_recipe("digits", {"budget": "10"})
