"""What was damaged on disk is found before it is used, and the newest that is whole is taken instead."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.token_folders import token_spec, write_tokens

from foundation.codes.dataset import TokenDataset
from foundation.codes.shards import read_shard, shard_path
from foundation.errors import ContractError, DataError, TesseraError
from foundation.hardware import TokenAccess
from foundation.training.checkpoints import latest_checkpoint, save_checkpoint
from stage1_tokenizer.tokenizer import TokenizerModel

MEMORY = TokenAccess(form="memory")
N_FLIPS, N_CUTS, N_DAMAGES = 240, 100, 200


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def test_damaged_shards_are_refused(tmp_path: Path, keep: Callable) -> None:
    """By the manifest, whatever is damaged; a shard alone never gives other codes than were written."""
    folder, rng = write_tokens(tmp_path, (300, 200)), random.Random(0)
    path, spec = shard_path(folder, "train", 1), token_spec()
    whole, truth = path.read_bytes(), read_shard(path, spec)
    detected, alone = Counter[str](), Counter[str]()
    for kind, n in (("flips", N_FLIPS), ("truncations", N_CUTS)):
        for _ in range(n):
            path.write_bytes(flipped(whole, rng) if kind == "flips" else truncated(whole, rng))
            with pytest.raises((DataError, ContractError), match=r"part-00001|shard"):
                TokenDataset(folder, "train", MEMORY)
            detected[kind] += 1
            try:
                found = read_shard(path, spec)
            except TesseraError:
                alone[kind] += 1
                continue
            assert np.array_equal(found.codes_BT, truth.codes_BT), "wrong codes from a damaged shard"
    path.write_bytes(whole)
    assert len(TokenDataset(folder, "train", MEMORY)) == 1000
    assert detected == {"flips": N_FLIPS, "truncations": N_CUTS}
    figures = {
        "bit flips": N_FLIPS,
        "of them found": detected["flips"],
        "truncations": N_CUTS,
        "all found": detected["truncations"],
        "flips found without the manifest": alone["flips"],
        "wrong codes then": 0,
    }
    keep("damaged shards", **figures)


def damage(kind: str, newest: Path, older: Path, rng: random.Random) -> None:
    """Spoil the checkpoint ``newest``; ``older`` is a sound one to swap with."""
    victim = rng.choice(sorted(each for each in newest.iterdir()))
    content = victim.read_bytes()
    if kind == "flip":
        victim.write_bytes(flipped(content, rng))
    elif kind == "truncate":
        victim.write_bytes(truncated(content, rng))
    elif kind == "append":
        victim.write_bytes(content + b"\0")
    elif kind == "delete":
        victim.unlink()
    elif kind == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    elif kind == "other step's file":
        shutil.copy(older / victim.name, victim)
    elif kind == "other step's folder":
        shutil.rmtree(newest)
        shutil.copytree(older, newest)
    elif kind == "two files swapped":
        first, second = newest / "state.json", newest / "state.safetensors"
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other)
        second.write_bytes(one)
    elif kind == "link":
        victim.unlink()
        victim.symlink_to(older / victim.name)
    else:
        raise AssertionError(kind)


KINDS = (
    "flip",
    "truncate",
    "append",
    "delete",
    "empty",
    "other step's file",
    "other step's folder",
    "two files swapped",
    "link",
)


def test_damaged_checkpoints_are_skipped_by_name_for_the_newest_sound_one(tmp_path: Path, keep: Callable) -> None:
    beginning, rng, seen = tmp_path / "beginning", random.Random(0), Counter[str]()
    for step in (1, 2, 3, 4):
        weights = torch.rand(30, generator=torch.Generator().manual_seed(step))
        save_checkpoint(beginning, step, {"step": step, "weights": weights, "rates": [0.1, 1e-8]}, keep=4)
    for trial in range(N_DAMAGES):
        root = Path(shutil.copytree(beginning, tmp_path / str(trial)))
        damaged = [4] if trial % 3 else [3, 4]
        for step in damaged:
            kind = KINDS[(trial + step) % len(KINDS)]
            seen[kind] += 1
            damage(kind, root / f"step-{step:08d}", root / "step-00000001", rng)
        found = latest_checkpoint(root)
        assert found is not None and found.step == min(damaged) - 1 == found.state["step"], (kind, found)
        names = [reason.split(":")[0] for reason in found.skipped]
        assert names == [f"step-{step:08d}" for step in reversed(damaged)]
        assert all(len(reason.split(": ", 1)[1]) > 8 for reason in found.skipped), found.skipped
        shutil.rmtree(root)
    assert set(seen) == set(KINDS)
    keep("damaged checkpoints", damages=sum(seen.values()), **{"wrong choices": 0, "skips without a reason": 0})


def test_damaged_model_folders_are_refused(tmp_path: Path, frozen: Path, keep: Callable) -> None:
    rng, names = random.Random(0), ("config.json", "model.safetensors")
    harmless = 0
    for trial in range(N_DAMAGES):
        folder = Path(shutil.copytree(frozen, tmp_path / str(trial)))
        victim = folder / names[trial % 2]
        victim.write_bytes((flipped if trial % 4 < 2 else truncated)(victim.read_bytes(), rng))
        try:
            found = TokenizerModel.load(folder)
        except TesseraError:
            continue
        finally:
            shutil.rmtree(folder)
        harmless += 1  # a letter of a name that only transformers reads
        assert found.fingerprint == TokenizerModel.load(frozen).fingerprint
    assert harmless < N_DAMAGES / 20
    keep("damaged models", damages=N_DAMAGES, refused=N_DAMAGES - harmless, **{"used although different": 0})


def test_a_checkpoint_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", 1, {"step": 1})
    save_checkpoint(tmp_path / "b", 2, {"step": 2})
    (tmp_path / "a" / "step-00000002").symlink_to(tmp_path / "b" / "step-00000002")
    found = latest_checkpoint(tmp_path / "a")
    assert found is not None and found.step == 1 and "symbolic link" in found.skipped[0]
