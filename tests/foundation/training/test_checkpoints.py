import random
from pathlib import Path

import pytest
import torch

from foundation.errors import CheckpointError
from foundation.storage.serialization import join_state, split_state
from foundation.training.checkpoints import latest_checkpoint, save_checkpoint


def state(step: int) -> dict:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "none": None, "t": (1, 2)}


def test_any_optimizer_state_survives_the_round_trip() -> None:
    before = state(3)
    after = join_state(*split_state(before))
    assert after["optimizer"]["param_groups"][0]["betas"] == [0.9, 0.999]
    assert torch.equal(after["optimizer"]["state"][0]["exp_avg"], before["optimizer"]["state"][0]["exp_avg"])
    model = torch.nn.Linear(3, 2)
    torch.optim.AdamW(model.parameters()).load_state_dict(after["optimizer"])
    assert after["none"] is None


def test_the_newest_sound_checkpoint_is_taken_and_each_damage_is_named(tmp_path: Path) -> None:
    rng = random.Random(0)
    for trial in range(20):
        root = tmp_path / str(trial)
        for step in (1, 2, 3):
            save_checkpoint(root, step, state(step), keep=3)
        victim = rng.choice(sorted((root / "step-00000003").iterdir()))
        content = bytearray(victim.read_bytes())
        if trial % 3 == 0:
            victim.unlink()
        elif trial % 3 == 1:
            victim.write_bytes(content[: rng.randrange(len(content))])
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            victim.write_bytes(content)
        found = latest_checkpoint(root)
        assert found is not None
        assert found.step == 2 == found.state["step"] and "step-00000003" in found.skipped[0]


def test_only_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    (tmp_path / "step-00000001" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used"):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_no_pickle_is_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    assert {each.suffix for each in tmp_path.rglob("*.*")} == {".json", ".safetensors"}


def test_two_sound_ones_stay_however_few_are_asked_for(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep=1)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_that_was_saved_before_is_written_again_only_if_it_is_damaged(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1)) / "state.json"
    before, content = path.stat().st_mtime_ns, path.read_bytes()
    save_checkpoint(tmp_path, 1, state(1))
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"damaged")
    save_checkpoint(tmp_path, 1, state(1))
    assert path.read_bytes() == content and latest_checkpoint(tmp_path) is not None
