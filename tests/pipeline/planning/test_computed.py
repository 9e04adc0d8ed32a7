"""FLOPs of training steps, counted without computing, beside the formula and beside a step that was computed."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from support.tiny_run import TINY
from support.training_steps import GAN
from torch.utils.flop_counter import FlopCounterMode

from pipeline.planning.computed import model_work, step_work
from pipeline.planning.machines import MACHINES
from pipeline.planning.memory import code_layout
from pipeline.planning.sizes import prior_cost
from pipeline.runs.recipe import load_recipe

GPU = MACHINES["h100"]


def test_a_prior_s_step_is_three_forward_passes_and_its_peak_that_of_its_precision() -> None:
    changes = {**TINY, "prior.training.precision": "bf16", "prior.training.checkpoint_blocks": True}
    recipe = load_recipe("digits", changes)
    work = step_work(recipe, "prior", GPU)
    forward, _ = prior_cost(recipe.prior.model, code_layout(recipe))
    batch = recipe.prior.training.fit.batch_size
    assert work.flops == pytest.approx(3 * forward * batch, rel=0.2), "attention counts only what is allowed to be seen"
    assert work.peak == 989e12 and work.at(0) == work.flops


def test_a_tokenizer_s_step_has_the_adversary_s_work_from_its_start_on() -> None:
    gan = {f"tokenizer.training.adversarial.{name}": value for name, value in {**GAN, "start_step": 2}.items()}
    recipe = load_recipe("digits", {**TINY, **gan, "tokenizer.training.precision": "float32"})
    work = step_work(recipe, "tokenizer", GPU)
    assert work.at(1) == work.flops_before < work.at(2) == work.flops and work.peak == 494e12


def test_counted_flops_are_those_of_a_computed_step() -> None:
    recipe = load_recipe("digits", {**TINY, "tokenizer.training.precision": "float32"})
    from stage1_tokenizer.objective import Objective
    from stage1_tokenizer.tokenizer import TokenizerModel
    from stage1_tokenizer.train import TokenizerTask

    training, preprocess, where = recipe.tokenizer.training, recipe.data.preprocess, Accelerator(cpu=True)
    model = TokenizerModel(recipe.tokenizer.model, preprocess)
    task = TokenizerTask(model, training, Objective(training, model, where, seed=0), None, where, seed=0)
    n, batch = training.fit.batch_size, torch.rand(16, preprocess.n_channels, preprocess.height, preprocess.width)
    task.train_step({"images": batch}, 0)
    with FlopCounterMode(display=False) as counter:
        task.train_step({"images": batch}, 1)
    counted = counter.get_total_flops() * n / len(batch)
    assert step_work(recipe, "tokenizer", GPU).flops == pytest.approx(counted, rel=0.05)


def test_a_device_without_a_data_sheet_has_no_share_of_its_peak() -> None:
    assert model_work(load_recipe("digits", TINY), "tokenizer", torch.device("cpu")) is None
