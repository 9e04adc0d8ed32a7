"""A folder as it is at one moment: its files are listed until the list is stable, and held by links beside it.

What is published under its final name is replaced, renamed or removed later, never written to, so that a link keeps the
content. Files that grow are copied, up to their last complete line, after the list is made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from foundation.storage import durable
from foundation.storage.names import temporary_name

Stamp = tuple[int, int, int]
"""inode, size and time of change of a file, ns"""
GROWING = ".jsonl"
"""end of the names of files that lines are appended to"""
_TRIES = 20


class ChangedMeanwhile(Exception):
    """Files were replaced or removed while they were listed or held: the next try may succeed."""


def list_files(root: Path, is_left_out: Callable[[str], bool]) -> dict[str, Stamp]:
    """Every plain file below a folder at one moment.

    Names that begin with a dot and symbolic links are left out, and with a folder all that is in it.

    Args:
        root: the folder.
        is_left_out: path below it, with / between its parts => whether it is left out.

    Returns:
        path => stamp, by path.

    Raises:
        ChangedMeanwhile: two lists in a row were never equal.
    """
    found: dict[str, Stamp] | None = None
    for _ in range(_TRIES):
        before, found = found, None
        with contextlib.suppress(FileNotFoundError):  # something went while the list was made
            found = _listed(root, is_left_out)
        if before is not None and found is not None and _fixed(before) == _fixed(found):
            return dict(sorted(found.items()))
    raise ChangedMeanwhile(str(root))


@contextlib.contextmanager
def held(root: Path, files: Mapping[str, Stamp]) -> Iterator[dict[str, Path]]:
    """Paths at which the content of these files stays until the end of the context, whatever becomes of them.

    Args:
        root: the folder.
        files: path below it => stamp, as listed.

    Raises:
        ChangedMeanwhile: one was replaced or removed since.
        StorageError: the disk refused.
    """
    folder = temporary_name(root / "held")
    with durable.writing(folder):
        folder.mkdir()
    try:
        places = {name: folder / str(i) for i, name in enumerate(files)}
        for name, place in places.items():
            _hold(root / name, place, files[name])
        yield places
    finally:
        durable.remove_folder(folder)


def _hold(path: Path, place: Path, stamp: Stamp) -> None:
    try:
        if path.name.endswith(GROWING):
            content = path.read_bytes()
            durable.write_bytes(place, content[: content.rfind(b"\n") + 1])
            return
        if _stamp(path.lstat()) != stamp:
            raise ChangedMeanwhile(str(path))
        _link(path, place)
        if _stamp(place.lstat()) != stamp and _stamp(path.lstat()) != stamp:  # a copy has a stamp of its own
            raise ChangedMeanwhile(str(path))
    except FileNotFoundError as error:
        raise ChangedMeanwhile(str(path)) from error


def _link(path: Path, place: Path) -> None:
    """A link; a copy where the disk has no links. Neither has to survive a crash."""
    try:
        place.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:

        def copy(target: Path) -> None:
            shutil.copyfile(path, target)

        with durable.writing(place):
            durable.write_file(place, copy)


def _fixed(files: Mapping[str, Stamp]) -> dict[str, Stamp | None]:
    return {name: None if name.endswith(GROWING) else stamp for name, stamp in files.items()}


def _listed(root: Path, is_left_out: Callable[[str], bool], below: str = "") -> dict[str, Stamp]:
    found: dict[str, Stamp] = {}
    with os.scandir(root / below) as entries:
        for each in entries:
            name = f"{below}{each.name}"
            if each.name.startswith(".") or each.is_symlink() or is_left_out(name):
                continue
            if each.is_dir(follow_symlinks=False):
                found |= _listed(root, is_left_out, f"{name}/")
            else:
                now = each.stat(follow_symlinks=False)
                if stat.S_ISREG(now.st_mode):
                    found[name] = _stamp(now)
    return found


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_ino, found.st_size, found.st_mtime_ns
