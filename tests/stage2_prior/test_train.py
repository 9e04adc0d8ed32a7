"""Training a prior on one process: accumulation, resume, memory options, random orders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.tiny_prior import BATCH, EVERYTHING, KINDS, N_IMAGES, STEPS, column, dataset, rows, tiny_task, train

from foundation.errors import ConfigError
from foundation.training.config import FitConfig, OptimConfig
from foundation.training.log import read_metrics
from stage2_prior.config import PriorConfig, PriorTraining, RandomOrder, Regularizer
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorTask, require_orders


def gradients(**options: Any) -> tuple[float, torch.Tensor]:
    """Loss and whole gradient of one step over all images."""
    task = tiny_task(Accelerator(cpu=True), **options)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = []

    def take_step(loss: torch.Tensor, step: int) -> Any:
        found.extend([float(loss), torch.cat([each.grad.flatten() for each in task.model.parameters()])])
        raise StopIteration

    task.learner.take_step = take_step
    codes = dataset()
    batch = {
        "tokens": torch.from_numpy(codes.codes_NT.astype(np.int64)),
        "labels": torch.from_numpy(codes.labels_N),
        "positions": torch.arange(N_IMAGES),
    }
    torch.manual_seed(1)
    with pytest.raises(StopIteration):
        PriorTask.train_step(task, batch, 0)
    return found[0], found[1]


@pytest.mark.parametrize("micro_batch_size", [1, 5, 10, 36, 37, 100])
def test_accumulation_gives_the_gradient_of_the_undivided_batch(micro_batch_size: int) -> None:
    options = {"z_loss": 1e-2, "random_order": RandomOrder(until_step=0, zero_step=2), "regularizer": Regularizer()}
    loss, whole = gradients(**options)
    other_loss, parts = gradients(micro_batch_size=micro_batch_size, **options)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert (whole - parts).norm() <= 1e-6 * whole.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_every_kind_of_prior_is_that_of_the_undivided_batch(kind: str) -> None:
    loss, whole = gradients(options=KINDS[kind])
    other_loss, parts = gradients(options=KINDS[kind], micro_batch_size=5, checkpoint_blocks=True)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert 0 < (whole - parts).norm() <= 1e-6 * whole.norm()


def test_recomputed_blocks_give_the_same_gradient_with_dropout() -> None:
    assert torch.equal(gradients(dropout=0.3)[1], gradients(dropout=0.3, checkpoint_blocks=True)[1])
    assert not torch.equal(gradients(dropout=0.3)[1], gradients(dropout=0.2)[1])


def test_each_pass_of_a_step_has_dropout_of_its_own() -> None:
    """With one mask for all passes the two halves of a doubled batch would have one gradient."""
    task = tiny_task(Accelerator(cpu=True), dropout=0.5, micro_batch_size=4)
    seeds: list[int] = []
    task.model.register_forward_pre_hook(lambda *_: None)
    task.learner.wrapped.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
    train_once(task, step=3)
    train_once(task, step=3)
    train_once(task, step=4)
    assert len(seeds) == 6 and len({seeds[1], seeds[5], seeds[0]}) == 3
    assert seeds[1] == seeds[3], "the same step draws the same"


def train_once(task: Any, step: int) -> Any:
    codes = dataset()
    batch = {
        "tokens": torch.from_numpy(codes.codes_NT[:8].astype(np.int64)),
        "labels": torch.from_numpy(codes.labels_N[:8]),
    }
    torch.manual_seed(step)
    return task.train_step(batch, step)


def test_a_run_killed_at_ten_places_ends_with_the_same_bits(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    expected = train(whole, tiny_task(accelerator, dropout=0.2, **EVERYTHING), accelerator)
    rng = np.random.default_rng(7)
    for stop_at in np.sort(rng.choice(np.arange(1, STEPS), 10, replace=False)):
        train(killed, tiny_task(accelerator, dropout=0.2, stop_at=int(stop_at), **EVERYTHING), accelerator)
    resumed = train(killed, tiny_task(accelerator, dropout=0.2, **EVERYTHING), accelerator)
    assert min(resumed.seen) > 1, "it continued"
    assert rows(whole) == rows(killed) and len(rows(whole, "train")) == STEPS
    for one, other in ((expected.model, resumed.model), (expected.exported(), resumed.exported())):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_of_every_kind_of_prior_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    how: dict[str, Any] = {"options": KINDS[kind], "dropout": 0.2, "micro_batch_size": 3, "average_decay": 0.9}
    tasks = []
    for name, stops in (("whole", ()), ("killed", (2, 7, 13))):
        (tmp_path / name).mkdir()
        for stop_at in (*stops, None):
            task = train(tmp_path / name, tiny_task(accelerator, stop_at=stop_at, **how), accelerator)
        tasks.append(task)
    assert min(tasks[1].seen) > 1, "it continued"
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    for one, other in zip(*(task.exported().state_dict().values() for task in tasks), strict=True):
        assert torch.equal(one, other)


def test_training_learns_and_logs_what_it_did(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    fit_config = FitConfig(steps=150, batch_size=BATCH, evaluate_every=50, checkpoint_every=150, log_every=1)
    options = {**EVERYTHING, "fit": fit_config, "optim": OptimConfig(learning_rate=1e-2, warmup_steps=5)}
    train(tmp_path, tiny_task(accelerator, **options), accelerator)
    held_out = [row["nats_per_code"] for row in rows(tmp_path, "held_out")]
    assert held_out[0] == pytest.approx(np.log(11), abs=1e-4) and held_out[-1] < 0.6 * held_out[0]
    last = read_metrics(tmp_path / "metrics.jsonl", kind="train")[-1]
    names = {"loss", "gradient_norm", "learning_rate", "skipped_steps", "tokens_per_second", "loading_seconds", "nll"}
    assert names <= last.keys() and last["tokens_per_second"] > 0 <= last["loading_seconds"]


def test_the_last_weights_need_no_memory_of_their_own() -> None:
    task = tiny_task(Accelerator(cpu=True), average_decay=0.0, dropout=0.5)
    held = {each.data_ptr() for each in task.model.parameters()}
    assert {each.data_ptr() for each in task.exported().parameters()} == held
    train_once(task, 0)
    assert task.model.training and not task.exported().training
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), task.exported().parameters(), strict=True))
    assert task.state_dict()["average"] == {}


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_and_keep_their_names() -> None:
    plain, compiled = gradients(), gradients(compile=True)
    assert (plain[1] - compiled[1]).norm() <= 1e-5 * plain[1].norm()
    task = tiny_task(Accelerator(cpu=True), compile=True)
    assert task.state_dict()["model"].keys() == tiny_task(Accelerator(cpu=True)).state_dict()["model"].keys()


def test_without_a_compiler_a_training_says_so_and_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain = gradients()
    monkeypatch.setenv("CXX", "no-such-compiler")
    uncompiled = gradients(compile=True)
    assert torch.equal(plain[1], uncompiled[1])
    assert "prior: not compiled" in (said := capsys.readouterr().err) and "no-such-compiler" in said


def test_wrong_options_are_refused_before_anything_runs() -> None:
    order = RandomOrder(until_step=1, zero_step=2)
    blind = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), tiny_task(Accelerator(cpu=True)).model.spec)
    with pytest.raises(ConfigError, match=r"prior\.model\.target_aware"):
        PriorTask(blind, PriorTraining(random_order=order), None, Accelerator(cpu=True))
    with pytest.raises(ConfigError, match=r"prior\.training\.random_order(.|\n)*null where prior\.model\.order is any"):
        require_orders(PriorConfig(order="any"), PriorTraining(random_order=order))
    with pytest.raises(ConfigError, match=r"prior\.training\.regularizer(.|\n)*masked"):
        require_orders(PriorConfig(order="masked"), PriorTraining(regularizer=Regularizer()))
    with pytest.raises(ConfigError, match="micro_batch_size"):
        PriorTraining(micro_batch_size=0)
    with pytest.raises(ConfigError, match=r"zero_step(.|\n)*below fit\.steps, 10"):
        PriorTraining(random_order=RandomOrder(until_step=0, zero_step=10), fit=FitConfig(steps=10))


def test_the_learning_rate_in_the_log_is_the_schedule(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    train(tmp_path, tiny_task(accelerator), accelerator)
    rates = column(tmp_path, "learning_rate")
    assert rates[:5] == pytest.approx([0.00075, 0.0015, 0.00225, 0.003, 0.003]) and rates[-1] < 0.002


def test_the_share_is_one_then_falls_to_zero() -> None:
    order = RandomOrder(until_step=10, zero_step=20)
    assert [order.share(step) for step in (0, 9, 10, 15, 19, 20, 99)] == [1, 1, 1, 0.5, pytest.approx(0.1), 0, 0]
    assert [RandomOrder(until_step=3, zero_step=3).share(step) for step in (2, 3)] == [1, 0]


def test_a_schedule_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero_step"):
        RandomOrder(until_step=5, zero_step=4)


def test_codes_that_need_far_more_than_uniform_ones_are_not_sound() -> None:
    task = tiny_task(Accelerator(cpu=True))
    assert task.is_sound({"nats_per_code": 2.5}) and not task.is_sound({"nats_per_code": 50.0})
