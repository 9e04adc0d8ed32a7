"""A packed copy is the shards' content or it is not used, whatever happens while it is made or afterwards."""

import dataclasses
import shutil
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.other_systems import System, macos, windows
from support.token_folders import PACKED, copy_of, require_right, token_spec, write_tokens

from foundation.codes import columns, packed, shards
from foundation.codes.columns import FileColumn, StoredColumn, load_columns
from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import open_split
from foundation.codes.packed import ENVIRONMENT, pack_columns
from foundation.codes.shards import shard_path
from foundation.codes.streamed import stream_columns
from foundation.errors import ContractError, DataError
from foundation.hardware import TokenAccess
from foundation.randomness import DataOrder
from foundation.storage import durable
from stage2_prior.data import CodeExamples


@pytest.fixture(autouse=True)
def _no_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.mark.parametrize("form", ["packed", "streamed"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("codebook_size", [1000, 70_000])
def test_every_form_gives_the_same_batches_over_two_epochs(
    tmp_path: Path, form: str, labelled: bool, codebook_size: int
) -> None:
    """One shard has several row groups; batches go over the ends of shards and epochs."""
    write_tokens(tmp_path, (300, 1200, 17), spec=token_spec(codebook_size, labelled=labelled))
    held = TokenDataset(tmp_path, "train", TokenAccess(form="memory"))
    other = TokenDataset(tmp_path, "train", TokenAccess(form=form))  # type: ignore[arg-type]
    assert other.form == form and other.codes_NT.dtype == held.codes_NT.dtype
    for views in ("all", "one"):
        made = [CodeExamples(each, 2 * labelled, label_dropout=0.2, views=views, seed=3) for each in (held, other)]  # type: ignore[arg-type]
        assert len(made[0]) == len(made[1]) == (3034 if views == "all" else 1517)
        order = DataOrder(len(made[0]), seed=1)
        for start in range(0, 2 * len(made[0]), 256):
            one, another = (each.batch(*order.at(np.arange(start, start + 256))) for each in made)
            assert one.keys() == another.keys() and all((one[key] == another[key]).all() for key in one)
    assert np.array_equal(np.asarray(other.grids[:5]), held.grids[:5]) and other.grids.shape == held.grids.shape
    assert [other.image_ids[i] for i in (0, 700, -1)] == [held.image_ids[i] for i in (0, 700, -1)]
    assert other.image_ids[598:603] == held.image_ids[598:603] and list(other.image_ids) == held.image_ids


def test_the_memory_limit_decides(tmp_path: Path) -> None:
    write_tokens(tmp_path, (6000,))
    assert TokenDataset(tmp_path).form == "memory" and not (tmp_path / ".packed").exists()
    small = require_right(tmp_path, TokenAccess(memory_limit_mib=1))
    assert small.form == "packed" and isinstance(small.codes_NT, StoredColumn)
    assert TokenDataset(tmp_path, "train", TokenAccess(memory_limit_mib=2)).form == "memory"
    flat = np.fromfile(copy_of(tmp_path) / "codes", "<u2")
    assert np.array_equal(flat.reshape(-1, 6), small.codes_NT), "any tool can read it"


def test_other_tools_do_not_see_the_copy(tmp_path: Path) -> None:
    from datasets import load_dataset

    require_right(write_tokens(tmp_path / "codes"))
    assert len(load_dataset(str(tmp_path / "codes"), split="train", cache_dir=str(tmp_path / "cache"))) == 188


def test_a_second_opening_reads_the_copy_and_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = np.asarray(require_right(write_tokens(tmp_path)).codes_NT)

    def refuse(*args: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(packed, "_write", refuse)
    monkeypatch.setattr(durable, "file_sha256", refuse)
    assert np.array_equal(TokenDataset(tmp_path, "train", PACKED).codes_NT, before)


def truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["codes", "labels", "views", "packed.json"])
def test_a_damaged_copy_is_made_again(tmp_path: Path, name: str, harm: Callable[[Path], object]) -> None:
    require_right(write_tokens(tmp_path))
    time.sleep(0.01)  # so that the time of writing differs
    harm(copy_of(tmp_path) / name)
    require_right(tmp_path)
    assert len([each for each in (tmp_path / ".packed" / "train").iterdir() if each.is_dir()]) == 1


def test_a_copy_of_other_shards_is_replaced(tmp_path: Path) -> None:
    require_right(write_tokens(tmp_path, seed=0))
    old = copy_of(tmp_path)
    shutil.rmtree(tmp_path / "data")
    require_right(write_tokens(tmp_path, seed=1))
    assert copy_of(tmp_path).name != old.name
    copy_of(tmp_path).rename(old)  # as if it were the copy of the first shards
    shutil.rmtree(tmp_path / "data")
    require_right(write_tokens(tmp_path, seed=0))


def test_a_copy_that_was_itself_copied_is_used_after_a_look_at_every_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_right(write_tokens(tmp_path))
    for path in copy_of(tmp_path).iterdir():
        path.touch()
    seen = []
    real = durable.file_sha256
    monkeypatch.setattr(durable, "file_sha256", lambda path: seen.append(path.name) or real(path))
    monkeypatch.setattr(packed, "_write", None)
    TokenDataset(tmp_path, "train", PACKED)
    assert sorted(seen) == ["codes", "labels", "views"]


@pytest.mark.parametrize("form", ["packed", "streamed", "memory"])
def test_a_damaged_shard_is_refused_in_every_form(tmp_path: Path, form: str) -> None:
    write_tokens(tmp_path)
    access = TokenAccess(form=form)  # type: ignore[arg-type]
    path = shard_path(tmp_path, "train", 1)
    whole = path.read_bytes()
    for place in (10, len(whole) // 2, len(whole) - 20):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises((DataError, ContractError), match="part-00001"):
            TokenDataset(tmp_path, "train", access).codes_NT[[0, 100]]
    path.unlink()
    with pytest.raises(DataError, match="shard is missing"):
        TokenDataset(tmp_path, "train", access).codes_NT[[0, 100]]
    path.write_bytes(whole)
    assert len(TokenDataset(tmp_path, "train", access).codes_NT[[0, 100]]) == 2


@pytest.mark.parametrize("form", ["packed", "streamed", "memory"])
def test_codes_are_checked_against_the_codebook_in_every_form(tmp_path: Path, form: str) -> None:
    write_tokens(tmp_path, spec=token_spec(1000))
    small = token_spec(900)
    split = dataclasses.replace(open_split(tmp_path, "train"), spec=small)
    opened = {"memory": load_columns, "packed": lambda each: pack_columns(each, tmp_path / ".packed")}.get(
        form, lambda each: stream_columns(each, 10**6)
    )
    with pytest.MonkeyPatch.context() as patch:  # shards whose footer says 900, by a writer that did not check
        patch.setattr(shards, "from_dict", lambda cls, values: small)
        with pytest.raises(DataError, match="outside the codebook"):
            opened(split).codes_NT[np.arange(100)]
    assert not list(tmp_path.glob(".packed/train/*/codes"))


def test_a_copy_that_is_removed_stays_readable_for_who_has_it_open(tmp_path: Path) -> None:
    ours = require_right(write_tokens(tmp_path, seed=0))
    truth = TokenDataset(tmp_path).codes_NT
    shutil.rmtree(tmp_path / "data")
    require_right(write_tokens(tmp_path, seed=1))
    assert np.array_equal(ours.codes_NT, truth) and np.array_equal(ours.codes_NT[[3, 0]], truth[[3, 0]])
    assert not np.array_equal(TokenDataset(tmp_path).codes_NT, truth)


def test_reading_rows_brings_no_more_of_the_file_into_memory(tmp_path: Path) -> None:
    path, shape = tmp_path / "flat", (1 << 20, 16)
    truth = np.arange(16 << 20, dtype=np.uint16).reshape(shape)  # 32 MiB
    truth.tofile(path)
    column = FileColumn(path, shape, truth.dtype)
    rows = np.random.default_rng(0).integers(0, 1 << 20, 5000)
    tracemalloc.start()
    before = resident_file_kib()
    found = column[rows]
    grown, peak = resident_file_kib() - before, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, truth[rows])
    assert grown < 1024 and peak < 2 << 20, (grown, peak)


@pytest.mark.parametrize("system", [windows, macos])
def test_systems_that_cannot_read_at_a_position_read_the_same_rows_from_threads(system: System, tmp_path: Path) -> None:
    path, shape = tmp_path / "flat", (5000, 4)
    truth = np.arange(20000, dtype=np.uint16).reshape(shape)
    truth.tofile(path)  # every byte, among them the line ends and the end of file of a text
    rows = np.random.default_rng(0).integers(0, 5000, (64, 50))
    with system():
        assert not hasattr(columns.os, "preadv")
        column = FileColumn(path, shape, truth.dtype)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(column.__getitem__, rows))
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError, match="ends before"):
            column[[4000]]
    assert np.array_equal(np.stack(found), truth[rows])


def test_on_windows_a_copy_that_is_still_read_does_not_hinder_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "PATIENCE_SECONDS", 0.0)
    with windows() as refused:
        ours = require_right(write_tokens(tmp_path, seed=0))
        truth = np.array(ours.codes_NT[:])
        shutil.rmtree(tmp_path / "data")
        require_right(write_tokens(tmp_path, seed=1))
        assert refused["in use"] > 0 and np.array_equal(ours.codes_NT[:], truth)


def resident_file_kib() -> int:
    """KiB of files that are mapped into this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))
