"""A packing that is stopped, overtaken or out of room leaves a right copy or none."""

import contextlib
import dataclasses
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.token_folders import PACKED, copy_of, require_right, write_tokens

from foundation.codes import packed
from foundation.codes.dataset import TokenDataset
from foundation.codes.packed import ENVIRONMENT, packed_home
from foundation.errors import StorageError
from foundation.storage import durable

PRIMITIVES = ("_fsync", "_rename", "write_bytes", "_unlink")


@pytest.fixture(autouse=True)
def _no_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


class Stop(BaseException):
    """Stands for the process dying: nothing catches it."""


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
    patch.setattr(packed, "arrays_of", stopping(packed.arrays_of))
    return lambda: seen


RACE = """
import sys, time
from pathlib import Path
import numpy as np
from foundation.codes import packed
from foundation.codes.dataset import TokenDataset
from foundation.hardware import TokenAccess
folder, name = Path(sys.argv[1]), sys.argv[2]
truth = TokenDataset(folder, "train", TokenAccess(form="memory"))
(folder / name).touch()
while not (folder / "one").exists() or not (folder / "two").exists():
    time.sleep(0.001)
real = packed._write
packed._write = lambda *args: (real(*args), (folder / f"written by {name}").touch())
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
    real, writes = packed._write, []

    def overtaken(*args: object) -> None:
        writes.append(args)
        if len(writes) == 1:
            TokenDataset(tmp_path, "train", PACKED)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(packed, "_write", overtaken)
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
    monkeypatch.setattr(packed, "_write", None)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda path: durable.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StorageError, match=r"too full(.|\n)*TESSERA_PACKED_FOLDER"):
        TokenDataset(tmp_path, "train", PACKED)
