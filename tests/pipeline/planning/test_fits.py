"""A training that cannot fit is refused before it starts, with what would fit."""

from __future__ import annotations

import re

import pytest
import torch
from support.tiny_run import TINY

from foundation.errors import ConfigError
from pipeline.planning import fits
from pipeline.planning.fits import PassMemory, needed, pass_memory, require_fits, trained_stages, upper_bound
from pipeline.planning.memory import step_memory
from pipeline.runs.recipe import Recipe, load_recipe

CPU = torch.device("cpu")
EXACT = {"tokenizer.training.precision": "float32", "prior.training.precision": "float32"}


def wide(**more: object) -> Recipe:
    """A prior of which activations are most."""
    model = {"d_model": 64, "n_layers": 2, "n_heads": 4}
    return load_recipe("digits", {**TINY, **EXACT, "prior.model": model, "prior.training.fit.batch_size": 512, **more})


def test_the_largest_micro_batch_fits_and_a_slightly_larger_one_does_not() -> None:
    recipe, room = wide(), 100 << 20
    micro = pass_memory(recipe, "prior", "cpu").largest(room)
    assert 8 < micro < 512
    assert needed(step_memory(recipe, "prior", "cpu", micro), "cpu") <= 1.05 * room
    assert needed(step_memory(recipe, "prior", "cpu", int(1.2 * micro) + 1), "cpu") > room


def test_what_cannot_fit_is_refused_with_a_way_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "device_memory", lambda device: 100 << 20)
    with pytest.raises(ConfigError) as caught:
        require_fits(wide(), CPU, ["prior"])
    said = str(caught.value)
    assert caught.value.field == "prior.training.micro_batch_size" and "512 examples" in said
    size = re.search(r"set prior.training.micro_batch_size to (\d+)", said)
    assert size is not None and "checkpoint_blocks" in said
    require_fits(wide(**{"prior.training.micro_batch_size": int(0.9 * int(size[1]))}), CPU, ["prior"])
    require_fits(wide(), CPU, [])


def test_what_may_not_fit_is_said_and_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    total = needed(step_memory(wide(), "prior", "cpu"), "cpu")
    monkeypatch.setattr(fits, "device_memory", lambda device: int(0.95 * total))
    require_fits(wide(), CPU)
    assert "prior" in capsys.readouterr().err


def test_where_not_even_one_example_fits_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "device_memory", lambda device: 1 << 20)
    monkeypatch.setattr(fits, "pass_memory", lambda *_, **__: PassMemory(2.0**30, 1.0, 8))
    with pytest.raises(ConfigError, match="smaller model"):
        require_fits(wide(), CPU)


def test_what_obviously_fits_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "step_memory", None)
    monkeypatch.setattr(fits, "device_memory", lambda device: 1 << 40)
    require_fits(wide(), CPU)


def test_networks_that_need_values_are_not_counted_and_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("needs values")

    monkeypatch.setattr(fits, "upper_bound", fails)
    require_fits(wide(), CPU, ["prior"])
    assert "prior" in (said := capsys.readouterr().err) and "needs values" in said


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_the_bound_is_above_the_count(stage: fits.Stage) -> None:
    recipe = wide()
    assert upper_bound(recipe, stage) > max(needed(step_memory(recipe, stage, kind), kind) for kind in ("cpu", "gpu"))


def test_processes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    total = needed(step_memory(wide(), "prior", "cpu", n_processes=4), "cpu")
    monkeypatch.setattr(fits, "device_memory", lambda device: int(1.1 * total))
    require_fits(wide(), CPU, n_processes=4)


def test_stages_are_those_that_the_recipe_trains() -> None:
    assert trained_stages(wide()) == ["tokenizer", "prior"]
    model = {**TINY["tokenizer.model"], "quantizer": {"type": "kl", "width": 4}}
    assert trained_stages(load_recipe("digits", {**TINY, "tokenizer.model": model})) == ["tokenizer", "prior"]
