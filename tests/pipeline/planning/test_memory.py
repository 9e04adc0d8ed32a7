"""Peak memory of a training step, counted: the same as on real tensors, part by part."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from support.tiny_run import TINY

from foundation.images.config import Preprocess
from pipeline.planning.memory import STATE, Kind, code_layout, step_memory
from pipeline.planning.trace import Trace
from pipeline.runs.recipe import Recipe, load_recipe
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorTask

EXACT = {"tokenizer.training.precision": "float32", "prior.training.precision": "float32"}
WITH_ALL_LOSSES = {
    "data.preprocess": {"height": 16, "width": 16, "mode": "RGB"},
    "tokenizer.training.perceptual": {"weight": 1.0, "precision": "float32"},
    "tokenizer.training.adversarial": {"weight": 0.1, "start_step": 1, "discriminator": {"width": 8, "n_layers": 1}},
}
TERMS = [
    {"type": "lite0", "side": 32, "stages": [2, 3]},
    {"type": "alignment", "side": 32, "hidden": 16},
    {"type": "equivariance", "scales": [1, 2]},
    {"type": "texture"},
]


def tiny(**more: object) -> Recipe:
    return load_recipe("digits", {**TINY, **EXACT, **more})


def parameters(module: torch.nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_weights_moments_and_average_are_those_of_the_model(kind: Kind) -> None:
    recipe = tiny()
    prior = PriorModel(recipe.prior.model, code_layout(recipe))
    memory = step_memory(recipe, "prior", kind)
    n_bytes = 4 * parameters(prior)
    assert memory.at_peak["moments"] == 2 * n_bytes and memory.at_peak["average"] == n_bytes
    assert n_bytes <= memory.at_peak["weights"] < 1.5 * n_bytes  # and tables of positions
    assert memory.at_peak["blocks"] > 0 and memory.peak == sum(memory.at_peak.values())


def test_muon_has_one_moment_where_adamw_has_two() -> None:
    recipe = tiny(**{"prior.training.optim.matrices": "muon"})
    prior, memory = PriorModel(recipe.prior.model, code_layout(recipe)), step_memory(recipe, "prior", "cpu")
    matrices = sum(parameters(block) for block in prior.blocks) - sum(
        each.numel() for each in prior.blocks.parameters() if each.ndim == 1
    )
    assert memory.at_peak["moments"] == 4 * (2 * parameters(prior) - matrices)
    assert memory.checkpoint == memory.at_peak["moments"] + 2 * 4 * parameters(prior)
    assert sum(each.flops for each in memory.work) > sum(
        each.flops for each in step_memory(tiny(), "prior", "cpu").work
    )


def test_the_networks_of_the_regularizer_are_counted() -> None:
    recipe, plain = tiny(**{"prior.training.regularizer.noise": 0.5}), step_memory(tiny(), "prior", "cpu")
    d, width = recipe.prior.model.shape.d_model, recipe.tokenizer.model.quantizer.width
    networks = 2 * (d + d * d + d + d * width + width)
    memory = step_memory(recipe, "prior", "cpu")
    assert memory.at_peak["moments"] == plain.at_peak["moments"] + 8 * networks
    assert memory.at_peak["average"] == plain.at_peak["average"] and memory.trained == plain.trained + 4 * networks


@pytest.mark.parametrize("terms", [[], TERMS], ids=["without terms", "with terms"])
def test_a_real_step_of_the_tokenizer_has_the_counted_peak(terms: list[dict[str, object]]) -> None:
    refit = {"tokenizer.training.freeze_coding_after": 0.5}
    recipe = tiny(**WITH_ALL_LOSSES, **{"tokenizer.training.terms": terms}, **(refit if terms else {}))
    counted = step_memory(recipe, "tokenizer", "cpu")
    training, accelerator = recipe.tokenizer.training.without_files().at_largest(), Accelerator(cpu=True)
    preprocess: Preprocess = recipe.data.preprocess
    model = TokenizerModel(recipe.tokenizer.model, preprocess)
    objective = Objective(training, model, accelerator, seed=0)
    task = TokenizerTask(model, training, objective, None, accelerator, seed=0)
    step = training.fit.steps - 1
    images = torch.rand(training.fit.batch_size, 3, 16, 16) * 2 - 1
    task.train_step({"images": images}, step)
    with Trace() as trace:
        task.train_step({"images": images}, step)
    of_step = counted.peak - sum(counted.at_peak.get(name, 0) for name in ("weights", "moments", "average", "batch"))
    assert trace.peak == pytest.approx(of_step, rel=0.02)


def test_a_real_step_of_the_prior_has_the_counted_peak() -> None:
    recipe = tiny()
    counted = step_memory(recipe, "prior", "cpu")
    model = PriorModel(recipe.prior.model, code_layout(recipe))
    task = PriorTask(model, recipe.prior.training, None, Accelerator(cpu=True))
    examples = {"tokens": torch.zeros(16, 16, dtype=torch.int64), "labels": torch.zeros(16, dtype=torch.int64)}
    task.train_step(examples, 0)
    with Trace() as trace:
        task.train_step(examples, 0)
    of_step = counted.peak - sum(counted.at_peak.get(name, 0) for name in ("weights", "moments", "average", "batch"))
    assert trace.peak == pytest.approx(of_step, rel=0.05)


def test_terms_take_memory_and_the_largest_scale_counts() -> None:
    def peak(*terms: dict[str, object], refit: float | None = None) -> int:
        changes = {"tokenizer.training.terms": list(terms), "tokenizer.training.freeze_coding_after": refit}
        size = {"data.preprocess": WITH_ALL_LOSSES["data.preprocess"]}
        return step_memory(tiny(**size, **changes), "tokenizer", "cpu").peak

    plain = peak()
    assert all(peak(each) > plain for each in TERMS)
    large, small, both = (peak({"type": "equivariance", "scales": scales}) for scales in ([1], [2], [1, 2]))
    assert small < large == both
    assert peak(refit=0.5) == plain, "a refit's steps are smaller"


def test_every_loss_and_network_of_stage_1_has_a_row() -> None:
    memory = step_memory(tiny(**WITH_ALL_LOSSES), "tokenizer", "gpu")
    assert {"encoder", "bottleneck", "decoder", "LPIPS", "discriminator", "loss"} <= set(memory.kept)
    assert all(memory.kept[name] > 0 for name in ("encoder", "decoder", "LPIPS", "discriminator"))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_smaller_passes_keep_less(kind: Kind) -> None:
    whole = step_memory(tiny(), "prior", kind)
    halves = step_memory(tiny(), "prior", kind, micro_batch=4)
    assert (halves.batch, halves.micro_batch) == (8, 4)
    assert halves.kept["blocks"] == pytest.approx(whole.kept["blocks"] / 4, rel=0.1)


def test_checkpointed_blocks_keep_less_on_a_gpu() -> None:
    more = {"prior.model": {**TINY["prior.model"], "n_layers": 4}}
    plain = step_memory(tiny(**more), "prior", "gpu")
    checkpointed = step_memory(tiny(**more, **{"prior.training.checkpoint_blocks": True}), "prior", "gpu")
    assert checkpointed.kept["blocks"] < 0.3 * plain.kept["blocks"]
    assert sum(each.flops for each in checkpointed.work) > 1.2 * sum(each.flops for each in plain.work)


def test_random_orders_and_codes_of_several_depths_are_counted() -> None:
    quantizer = {"type": "residual", "depth": 2, "codebook": {"codebook_size": 16, "width": 4}}
    deep = tiny(**{"tokenizer.model": {**TINY["tokenizer.model"], "quantizer": quantizer}})
    assert step_memory(deep, "prior", "gpu").peak > step_memory(tiny(), "prior", "gpu").peak
    order = {"prior.model.target_aware": True, "prior.training.random_order": {"until_step": 1, "zero_step": 2}}
    assert step_memory(tiny(**order), "prior", "cpu").peak > 0


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_counting_leaves_the_process_as_it_was(kind: Kind) -> None:
    torch.manual_seed(3)
    before, to = torch.get_rng_state(), torch.nn.Module.to
    step_memory(tiny(), "tokenizer", kind)
    assert torch.equal(torch.get_rng_state(), before) and torch.nn.Module.to is to
    assert torch.zeros(1).device.type == "cpu" and torch.autograd.is_multithreading_enabled()
    assert set(STATE) == {"weights", "gradients", "moments", "average"}
