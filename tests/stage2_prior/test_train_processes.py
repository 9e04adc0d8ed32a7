"""Training a prior on two processes, replicated (DDP) and sharded (FSDP2), beside one process."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from support.tiny_prior import EVERYTHING, KINDS, STEPS, column, rows, tiny_task, train

from foundation.errors import TrainingError
from foundation.training import learner, optim
from foundation.training.parallel import is_sharded, local_shard
from stage2_prior.prior import PriorModel

STRATEGIES = ["ddp", "fsdp2"]


def processes() -> Accelerator:
    """The accelerator of one of two processes."""
    AcceleratorState._reset_state(reset_partial_state=True)  # else a fork keeps its parent's single process
    torch.set_num_threads(1)  # nor can a fork use its parent's OpenMP threads
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    return accelerator


def launch(monkeypatch: pytest.MonkeyPatch, strategy: str, child: Any, *arguments: Any) -> None:
    """Run a function on two processes, as accelerate launch would with ddp.yaml or fsdp2.yaml."""
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_FSDP", str(strategy == "fsdp2").lower())
    monkeypatch.setitem(os.environ, "FSDP_VERSION", "2")
    debug_launcher(child, arguments, num_processes=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_FSDP", "false")


def _train(folder: Path, strategy: str, stop_at: int | None) -> None:
    accelerator = processes()
    task = tiny_task(accelerator, stop_at=stop_at, **EVERYTHING)
    assert is_sharded(next(task.model.parameters())) == (strategy == "fsdp2")
    train(folder, task, accelerator)
    for step, tokens in task.seen.items():
        np.save(folder / f"seen-{step:02d}-{accelerator.process_index}.npy", tokens)
    exported = task.exported()
    if accelerator.is_main_process and stop_at is None:
        (folder / "exported").mkdir()
        exported.save(folder / "exported")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder and the task of a run on one process."""
    folder, accelerator = tmp_path_factory.mktemp("alone"), Accelerator(cpu=True)
    return folder, train(folder, tiny_task(accelerator, **EVERYTHING), accelerator)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_like_one(
    strategy: str, alone: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, strategy, _train, tmp_path, strategy, None)
    assert column(tmp_path, "loss") == pytest.approx(column(alone[0], "loss"), rel=1e-4)
    assert column(tmp_path, "gradient_norm") == pytest.approx(column(alone[0], "gradient_norm"), rel=1e-3)
    assert column(tmp_path, "learning_rate") == column(alone[0], "learning_rate")
    scores = [[row["nats_per_code"] for row in rows(folder, "held_out")] for folder in (tmp_path, alone[0])]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    _require_loads_alone(tmp_path)


def _require_loads_alone(folder: Path) -> None:
    """What two processes saved is what one process loads: names, shapes, bits."""
    accelerator = Accelerator(cpu=True)
    task = train(folder, tiny_task(accelerator, **EVERYTHING), accelerator)
    assert not task.seen, "nothing was left to do"
    exported = PriorModel.load(folder / "exported").state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in task.exported().state_dict().items())
    assert any(not torch.equal(value, exported[name]) for name, value in task.model.state_dict().items())


def _train_kind(folder: Path, kind: str) -> None:
    accelerator = processes()
    train(folder, tiny_task(accelerator, options=KINDS[kind], micro_batch_size=3), accelerator)


@pytest.mark.parametrize("kind", ["any", "masked, guidance-input", "pixelcnn"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_every_kind_of_prior_like_one(
    strategy: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), together.mkdir()
    accelerator = Accelerator(cpu=True)
    train(alone, tiny_task(accelerator, options=KINDS[kind]), accelerator)
    launch(monkeypatch, strategy, _train_kind, together, kind)
    assert column(together, "loss") == pytest.approx(column(alone, "loss"), rel=1e-4)
    scores = [[row["nats_per_code"] for row in rows(folder, "held_out")] for folder in (together, alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_the_number_of_processes_may_change_in_the_middle_of_an_epoch(
    alone: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 -> 2 replicated -> 2 sharded -> 1: the same samples and losses as one process throughout."""
    accelerator = Accelerator(cpu=True)
    first = train(tmp_path, tiny_task(accelerator, stop_at=5, **EVERYTHING), accelerator)
    launch(monkeypatch, "ddp", _train, tmp_path, "ddp", 10)
    launch(monkeypatch, "fsdp2", _train, tmp_path, "fsdp2", 14)
    accelerator = Accelerator(cpu=True)
    last = train(tmp_path, tiny_task(accelerator, **EVERYTHING), accelerator)
    assert (min(last.seen), max(first.seen)) == (12, 4)
    seen = {**first.seen, **_seen_by_two(tmp_path), **last.seen}
    assert sorted(seen) == list(range(STEPS))
    assert all(np.array_equal(seen[step], alone[1].seen[step]) for step in seen)
    assert column(tmp_path, "loss") == pytest.approx(column(alone[0], "loss"), rel=1e-5)
    for one, other in zip(last.model.parameters(), alone[1].model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4)


def _seen_by_two(folder: Path) -> dict[int, np.ndarray]:
    steps = {int(path.name.split("-")[1]) for path in folder.glob("seen-*")}
    return {
        step: np.concatenate([np.load(folder / f"seen-{step:02d}-{rank}.npy") for rank in (0, 1)]) for step in steps
    }


def _bf16(folder: Path, stop_at: int | None) -> None:
    """In bf16, with dropout, to the end or up to a step."""
    accelerator = processes()
    task = tiny_task(accelerator, stop_at=stop_at, precision="bf16", **EVERYTHING)
    gathered = []
    inside = task.model.blocks[0].attention
    inside.register_forward_hook(lambda module, *_: gathered.append(next(module.parameters()).dtype))
    train(folder, task, accelerator)
    assert set(gathered) == {torch.bfloat16}
    assert all(local_shard(each).dtype == torch.float32 for each in task.model.parameters())


def test_in_bf16_blocks_are_gathered_in_bf16_and_train_like_one_process_and_resume_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, whole, parts = (tmp_path / name for name in ("alone", "whole", "parts"))
    accelerator = Accelerator(cpu=True)
    train(alone, tiny_task(accelerator, precision="bf16", **EVERYTHING), accelerator)
    for folder, stop_at in ((whole, None), (parts, 7), (parts, None)):
        launch(monkeypatch, "fsdp2", _bf16, folder, stop_at)
    assert column(whole, "loss") == pytest.approx(column(alone, "loss"), rel=5e-3)
    assert rows(parts) == rows(whole)


def _decided_on_the_device(folder: Path) -> None:
    """As on a GPU: steps 1 and 3 to 12 are spoilt on process 1 only, and nobody reads whether they were taken."""
    optim.reads_freely = learner.reads_freely = lambda device: False
    accelerator = processes()
    task = tiny_task(accelerator, **EVERYTHING)
    rank, spoilt = accelerator.process_index, [False]
    task.model.blocks[0].register_forward_hook(lambda module, inputs, out: out * torch.nan if spoilt[0] else out)
    generator = torch.Generator().manual_seed(rank)
    for step in range(12):
        tokens = torch.randint(11, (4, 6), generator=generator)
        batch = {"tokens": tokens, "labels": torch.zeros(4, dtype=torch.int64), "positions": torch.arange(4)}
        spoilt[0] = rank == 1 and step not in (0, 2)
        before = _shares(task)
        metrics = task.train_step(batch, step)
        assert torch.equal(before, _shares(task)) == (step not in (0, 2)), (rank, step)
    assert int(metrics["skipped_steps"]) == 10
    with pytest.raises(TrainingError, match="10 steps in a row"):
        task.train_step(batch, 12)
        task.settle({"skipped_steps": 11.0})
    (folder / f"done-{rank}").touch()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_device_skips_a_step_that_is_not_finite_on_another_process(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, strategy, _decided_on_the_device, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def _nan_on_one(folder: Path) -> None:
    """Steps 1 and 3 to 12 are spoilt on process 1 only."""
    accelerator = processes()
    task = tiny_task(accelerator, **EVERYTHING)
    rank, spoilt, skipped = accelerator.process_index, [False], []
    task.model.blocks[0].register_forward_hook(lambda module, inputs, out: out * torch.nan if spoilt[0] else out)
    generator = torch.Generator().manual_seed(rank)
    for step in range(12):
        tokens = torch.randint(11, (4, 6), generator=generator)
        batch = {"tokens": tokens, "labels": torch.zeros(4, dtype=torch.int64), "positions": torch.arange(4)}
        spoilt[0] = rank == 1 and step not in (0, 2)
        before = _shares(task)
        skipped.append(task.train_step(batch, step)["skipped_steps"])
        assert torch.equal(before, _shares(task)) == (step not in (0, 2)), (rank, step)
    with pytest.raises(TrainingError, match="10 steps in a row"):
        task.train_step(batch, 12)
    assert skipped == [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    (folder / f"done-{rank}").touch()


def _shares(task: Any) -> torch.Tensor:
    """What this process holds of weights and averages, copied."""
    held = [*task.model.parameters(), *task.learner.average.model.parameters()]
    return torch.cat([local_shard(each.detach()).flatten() for each in held]).clone()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_nan_on_one_process_skips_the_step_on_both(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, strategy, _nan_on_one, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
