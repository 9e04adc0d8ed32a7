"""What a mirror has, brought into a run folder: all or nothing, verified, and never older over newer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from foundation.errors import CheckpointError
from foundation.paths import without_secrets
from foundation.storage import durable
from foundation.storage.names import temporary_name
from foundation.storage.remote.errors import RemoteError
from foundation.storage.remote.mirror_index import Entry, MirrorIndex, MirrorStore, object_name
from foundation.storage.remote.objects import described_objects
from foundation.storage.remote.transfer import fetch
from pipeline.runs.folder import RunFolder

_CHECKPOINT = re.compile(r"checkpoints/(tokenizer|prior)/step-(\d+)/")
_PARTS = ("tokenizer/", "codes/", "prior/", "samples/", "uses/", "checkpoints/")
"""folders whose files are published once"""
_ORDER = (
    *("checkpoints/tokenizer/", "tokenizer/", "codes/", "codes/manifest.json"),
    *("checkpoints/prior/", "prior/", "samples/", "report.html"),
)
"""what others are made from comes first; what is not here comes before all"""
_MADE = ("tokenizer", "prior", "samples")
_AT_ONCE = 8
Accept = Callable[[RunFolder], None]
"""refuses a folder with the recipe of a mirror, and folders of the parts that have begun"""


def checkpoint_of(path: str) -> tuple[str, int] | None:
    """(stage, step) of the checkpoint that a file of a run belongs to; None for another file."""
    found = _CHECKPOINT.match(path)
    return None if found is None else (found[1], int(found[2]))


def newest_steps(files: Collection[str]) -> dict[str, int]:
    """Stage => step of its newest checkpoint, of stages that have one."""
    steps: dict[str, int] = {}
    for stage, step in filter(None, map(checkpoint_of, files)):
        steps[stage] = max(step, steps.get(stage, 0))
    return steps


def progress(files: Collection[str]) -> tuple[int, ...]:
    """How far a run is, by the files of its folder; a later run compares as larger."""
    steps, n_shards = newest_steps(files), sum(each.startswith("codes/data/") for each in files)
    tokenizer, prior, samples = (any(each.startswith(f"{part}/") for each in files) for part in _MADE)
    codes, report = (each in files for each in ("codes/manifest.json", "report.html"))
    return steps.get("tokenizer", 0), tokenizer, n_shards, codes, steps.get("prior", 0), prior, samples, report


def progress_text(files: Collection[str]) -> str:
    """How far a run is, in words."""
    steps = newest_steps(files)
    if "prior" in steps:
        return f"step {steps['prior']:,} of the prior"
    n_shards = sum(each.startswith("codes/data/") for each in files)
    if n_shards:
        return f"{n_shards:,} files of codes"
    return f"step {steps['tokenizer']:,} of the tokenizer" if "tokenizer" in steps else "no checkpoint yet"


def restore(store: MirrorStore, folder: RunFolder, note: bytes, accept: Accept = lambda folder: None) -> str:
    """Make a run folder that is not there from its mirror.

    Args:
        store: whose index has been read.
        folder: to make.
        note: content of ``mirror.json`` in it.
        accept: called before anything else is fetched.

    Returns:
        what was fetched, in words.

    Raises:
        CheckpointError: an object is missing or damaged; names it.
        StorageError: the disk refused, or is too full.
        RemoteError: the store gives no access.
    """
    index = store.index
    assert index is not None
    durable.sweep(folder.root.parent)
    durable.require_free_space(folder.root.parent, _size(index.files), "the run")
    said: list[str] = []

    def fill(temporary: Path) -> None:
        _require_accepted(store, index, temporary, accept)
        said.append(_fetch_all(store, index, index.files, temporary))
        durable.write_bytes(temporary / folder.note.name, note)

    durable.publish_folder(folder.root, fill)
    return said[0]


def catch_up(store: MirrorStore, folder: RunFolder, accept: Accept = lambda folder: None) -> str:
    """Fetch into a run folder what another machine has made since.

    Args:
        store: whose index has been read, and is ahead of the folder.
        folder: of the same run, which no other process uses.
        accept: see ``restore``.

    Returns:
        what was fetched, in words.

    Raises:
        CheckpointError: a part that both have differs; an object is missing or damaged.
        StorageError, RemoteError: see ``restore``.
    """
    index = store.index
    assert index is not None
    missing = {path: each for path, each in index.files.items() if not _has(folder.root / path, each)}
    differing = [path for path in missing if path.startswith(_PARTS) and (folder.root / path).exists()]
    if differing:
        what, found = "the folder and its mirror have gone different ways", f"{', '.join(differing[:3])} differs"
        fix = "give another --out, which then gets what the mirror has; or another --mirror for this folder"
        raise CheckpointError(what, field=str(folder.root), found=f"{found} from {store.shown}", fix=fix)
    durable.require_free_space(folder.root, 2 * _size(missing), "what the mirror has")
    with _aside(folder.root) as temporary:
        _require_accepted(store, index, temporary, accept)
        said = _fetch_all(store, index, missing, temporary)
        for path in sorted(missing, key=_rank):
            _place(temporary, folder.root, path)
    return said


def _has(path: Path, entry: Entry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    return durable.file_sha256(path) == entry.sha256


def _size(files: Mapping[str, Entry]) -> int:
    return sum(each.size for each in files.values())


def _rank(path: str) -> tuple[int, str]:
    return max((i for i, each in enumerate(_ORDER) if path.startswith(each)), default=-1), path


def _place(temporary: Path, root: Path, path: str) -> None:
    """Publish what was fetched under its name; of a folder that is not there the whole at once."""
    if not (temporary / path).exists():  # of a checkpoint that was left out
        return
    parts = path.split("/")
    for i in range(1, len(parts)):
        above = "/".join(parts[:i])
        if not (root / above).exists():
            durable.publish_folder(root / above, lambda target: durable.copy_files(temporary / above, target))  # noqa: B023
            return
    content = (temporary / path).read_bytes()
    if not (root / path).exists():
        durable.publish_file(root / path, lambda target: durable.write_bytes(target, content))
    elif durable.file_sha256(root / path) != durable.file_sha256(temporary / path):
        durable.replace_file(root / path, content)


def fetch_recipe(store: MirrorStore, target: Path) -> Path:
    """Fetch the recipe of a run into a folder; returns its path there.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    assert store.index is not None
    path = RunFolder(target).recipe
    if path.name not in store.index.files:
        fix = "begin the run again with a recipe and another --mirror"
        raise CheckpointError("holds no recipe", field=store.shown, fix=fix)
    _fetch(store, path.name, store.index.files[path.name], target)
    return path


def _require_accepted(store: MirrorStore, index: MirrorIndex, temporary: Path, accept: Accept) -> None:
    """Have ``accept`` look at the recipe, which is fetched first, and at which parts have begun."""
    with _aside(temporary) as trial:
        fetch_recipe(store, trial)
        for path in index.files:
            (trial / path).parent.mkdir(parents=True, exist_ok=True)
        accept(RunFolder(trial))


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A temporary folder in a folder."""
    temporary = temporary_name(folder / "restored")
    with durable.writing(temporary):
        temporary.mkdir()
    try:
        yield temporary
    finally:
        durable.remove_folder(temporary)


def _fetch_all(store: MirrorStore, index: MirrorIndex, files: Mapping[str, Entry], target: Path) -> str:
    """Fetch files below a folder; a damaged checkpoint is left out where the stage has another one.

    Returns:
        what is there now, in words.

    Raises:
        CheckpointError: an object is missing or damaged.
    """
    damaged: dict[str, CheckpointError] = {}

    def fetch_one(path: str) -> None:
        try:
            _fetch(store, path, files[path], target)
        except CheckpointError as error:
            damaged[path] = error

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="restore") as pool:
        for _ in pool.map(fetch_one, sorted(files, key=lambda path: files[path].size, reverse=True)):
            pass
    lost = {checkpoint_of(path) for path in damaged}
    for path, error in damaged.items():
        checkpoint = checkpoint_of(path)
        others = {checkpoint_of(each) for each in index.files} - lost
        if checkpoint is None or not any(each is not None and each[0] == checkpoint[0] for each in others):
            raise error
    left = [path for path in files if checkpoint_of(path) not in lost - {None}]
    for path in sorted(set(files) - set(left)):
        (target / path).unlink(missing_ok=True)
    for checkpoint in sorted(filter(None, lost)):
        (target / "checkpoints" / checkpoint[0] / f"step-{checkpoint[1]:08d}").rmdir()
    skipped = "".join(f"; left out: {' '.join(str(each).split())}" for each in damaged.values())
    there = [path for path in index.files if path not in files or path in left]
    size = _size({path: files[path] for path in left})
    return f"{progress_text(there)}, {len(left):,} files, {size / 1e9:.2f} GB{skipped}"


def _fetch(store: MirrorStore, path: str, entry: Entry, target: Path) -> None:
    """Fetch one file.

    Raises:
        CheckpointError: it is missing or damaged in the store.
        RemoteError: the store gives no access.
    """
    address = f"{store.address}/{object_name(path, entry)}"
    place = target / path
    place.parent.mkdir(parents=True, exist_ok=True)
    fix = "take back an earlier version with the store's own tools; or begin again with another --mirror"
    try:
        with durable.writing(place):
            fetch(described_objects([address])[0], place)
    except RemoteError as error:
        if error.code != "vanished":
            raise
        raise CheckpointError(f"{path} is missing in the mirror", field=without_secrets(address), fix=fix) from error
    if durable.file_sha256(place) != entry.sha256:
        what = f"{path} is damaged in the mirror: it is not what the index lists"
        raise CheckpointError(what, field=without_secrets(address), fix=fix)
