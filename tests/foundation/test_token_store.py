"""A packed copy is the shards' content or it is not used, whatever happens while it is made or afterwards."""

import contextlib
import dataclasses
import errno
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from token_folders import token_spec, write_tokens

from foundation import durable, token_shards, token_store
from foundation.data_order import DataOrder
from foundation.errors import ContractError, DataError, StorageError
from foundation.token_columns import load_columns
from foundation.token_dataset import TokenAccess, TokenDataset, shard_path
from foundation.token_manifest import open_split
from foundation.token_rows import FileColumn, StoredColumn
from foundation.token_store import ENVIRONMENT, pack_columns, packed_home
from foundation.token_stream import stream_columns
from stage2_prior.data import CodeExamples

PACKED = TokenAccess(form="packed")
PRIMITIVES = ("_fsync", "_rename", "write_bytes", "_unlink")


class Stop(BaseException):
    """Stands for the process dying: nothing catches it."""


@pytest.fixture(autouse=True)
def _no_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def require_right(folder: Path, access: TokenAccess = PACKED) -> TokenDataset:
    """The packed form holds what the shards hold."""
    ours, truth = TokenDataset(folder, "train", access), TokenDataset(folder, "train", TokenAccess(form="memory"))
    assert np.array_equal(ours.codes_NT, truth.codes_NT) and np.array_equal(ours.views_N, truth.views_N)
    assert (ours.labels_N is None) == (truth.labels_N is None)
    assert truth.labels_N is None or np.array_equal(ours.labels_N, truth.labels_N)
    assert list(ours.image_ids) == truth.image_ids
    return ours


def copy_of(folder: Path) -> Path:
    (found,) = (each for each in (folder / ".packed" / "train").iterdir() if each.is_dir())
    return found


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

    monkeypatch.setattr(token_store, "_write", refuse)
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
    monkeypatch.setattr(token_store, "_write", None)
    TokenDataset(tmp_path, "train", PACKED)
    assert sorted(seen) == ["codes", "labels", "views"]


@pytest.mark.parametrize("failure", [Stop(), OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "I/O error")])
def test_a_packing_that_stops_at_any_operation_leaves_no_wrong_copy(tmp_path: Path, failure: BaseException) -> None:
    write_tokens(tmp_path, (5, 4))
    packed = tmp_path / ".packed"
    for nth in range(1, 40):
        with pytest.MonkeyPatch.context() as patch:
            count = stop_at(patch, nth, failure)
            with contextlib.suppress(Stop, StorageError):
                TokenDataset(tmp_path, "train", PACKED)
            reached = count() >= nth
        require_right(tmp_path)  # whatever was left: doing it again is right
        names = [each.name for each in (packed / "train").iterdir()]
        assert len(names) == 2 and not any(name.startswith(".tmp") for name in names), names
        durable.remove_folder(copy_of(tmp_path))
        if not reached:
            assert nth > 8
            return
    raise AssertionError("the operations were never exhausted")


def stop_at(patch: pytest.MonkeyPatch, nth: int, failure: BaseException) -> Callable[[], int]:
    """Make the nth operation raise, among the durable ones and the reading of a shard; returns a counter."""
    seen = 0

    def stopping(real: Callable) -> Callable:
        def wrapped(*args: object, **options: object) -> object:
            nonlocal seen
            seen += 1
            if seen == nth:
                raise failure
            if seen > nth and isinstance(failure, Stop):
                return None  # a dead process does nothing more
            return real(*args, **options)

        return wrapped

    for name in PRIMITIVES:
        patch.setattr(durable, name, stopping(getattr(durable, name)))
    patch.setattr(durable.shutil, "rmtree", stopping(durable.shutil.rmtree))
    patch.setattr(token_store, "arrays_of", stopping(token_store.arrays_of))
    return lambda: seen


RACE = """
import sys, time
from pathlib import Path
import numpy as np
from foundation import token_store
from foundation.token_dataset import TokenAccess, TokenDataset
folder, name = Path(sys.argv[1]), sys.argv[2]
truth = TokenDataset(folder, "train", TokenAccess(form="memory"))
(folder / name).touch()
while not (folder / "one").exists() or not (folder / "two").exists():
    time.sleep(0.001)
real = token_store._write
token_store._write = lambda *args: (real(*args), (folder / f"written by {name}").touch())
ours = TokenDataset(folder, "train", TokenAccess(form="packed"))
sys.exit(0 if np.array_equal(ours.codes_NT, truth.codes_NT) and ours.form == "packed" else 1)
"""


def test_two_processes_that_pack_at_once_are_both_right(tmp_path: Path) -> None:
    write_tokens(tmp_path, (800,) * 4)
    lines = [[sys.executable, "-c", RACE, str(tmp_path), name] for name in ("one", "two")]
    processes = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in lines]
    for process in processes:
        errors = process.communicate(timeout=100)[1]
        assert process.returncode == 0, errors
    assert len(list(tmp_path.glob("written by *"))) == 1, "the second waits, then takes the copy of the first"
    require_right(tmp_path)
    assert not [each for each in (tmp_path / ".packed" / "train").iterdir() if each.name.startswith(".tmp")]


def test_where_locks_do_not_hold_the_second_takes_the_copy_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    write_tokens(tmp_path)
    monkeypatch.setattr(filelock, "FileLock", lambda path: contextlib.nullcontext())
    real, writes = token_store._write, []

    def overtaken(*args: object) -> None:
        writes.append(args)
        if len(writes) == 1:
            TokenDataset(tmp_path, "train", PACKED)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(token_store, "_write", overtaken)
    require_right(tmp_path)
    assert len(writes) == 2


def test_a_folder_that_cannot_be_written_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tokens(tmp_path / "codes")
    (folder / ".packed").write_text("a file where the folder should be")
    with pytest.raises(StorageError) as caught:
        TokenDataset(folder, "train", PACKED)
    for fragment in (ENVIRONMENT, "packed_folder", "memory_limit_mib", "streamed", "GiB free"):
        assert fragment in str(caught.value)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "elsewhere"))
    require_right(folder)
    assert list((tmp_path / "elsewhere").glob("codes-*/train/*/codes"))
    require_right(folder, dataclasses.replace(PACKED, packed_folder=str(tmp_path / "named")))
    assert list((tmp_path / "named").glob("codes-*/train/*/codes")), "what is named goes before the environment"
    assert packed_home(folder) != packed_home(tmp_path / "other" / "codes"), "each dataset has a folder of its own"


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(tmp_path)
    monkeypatch.setattr(token_store, "_write", None)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda path: durable.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StorageError, match=r"too full(.|\n)*TESSERA_PACKED_FOLDER"):
        TokenDataset(tmp_path, "train", PACKED)


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
        patch.setattr(token_shards, "from_dict", lambda cls, values: small)
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


def resident_file_kib() -> int:
    """KiB of files that are mapped into this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))
