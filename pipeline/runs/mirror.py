"""Mirror of a run in an object store: what is mirrored of the folder, whose mirror it is, the copying beside work."""

from __future__ import annotations

import _thread
import contextlib
import json
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.config import environment_seconds
from foundation.errors import CheckpointError, ConfigError, Interrupted, StorageError
from foundation.paths import expand
from foundation.storage import durable
from foundation.storage.remote.mirror import Mirror, Mirrored
from foundation.storage.remote.mirror_index import MirrorStore
from foundation.storage.serialization import read_json
from foundation.storage.snapshot import Stamp, list_files
from foundation.threads import give_way
from foundation.training.heartbeat import wait_for_everyone
from foundation.training.stop_signal import StopSignal, request_stop
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.restore import (
    Accept,
    catch_up,
    checkpoint_of,
    fetch_recipe,
    newest_steps,
    progress,
    progress_text,
    restore,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

OFF = "none"
"""address that ends the mirroring of a run"""
STOP_VARIABLE, _STOP_S = "TESSERA_STOP_SECONDS", 25.0
"""environment variable: seconds after a stop signal until a command ends, with its mirror complete or not"""
PATIENCE_VARIABLE, _PATIENCE_S = "TESSERA_MIRROR_TIMEOUT", 600.0
"""environment variable: seconds without progress after which a finished run gives its mirror up"""
_WAITS = ((PATIENCE_VARIABLE, _PATIENCE_S), (STOP_VARIABLE, _STOP_S))
_NOTE = RunFolder(Path()).note.name
Say = Callable[[str], object]


@dataclass
class RunMirror:
    """A run folder and its mirror, opened: the index was read, nothing was written.

    Attributes:
        folder: of the run; it need not exist.
        store: the mirror.
        run: id of the run.
    """

    folder: RunFolder
    store: MirrorStore
    run: str

    def fetch(self, say: Say, accept: Accept = lambda folder: None) -> None:
        """Bring what the mirror has and the folder lacks into the folder.

        Args:
            say: told what was fetched.
            accept: see ``restore``.

        Raises:
            CheckpointError, StorageError, RemoteError: see ``restore`` and ``catch_up``.
        """
        index, folder = self.store.index, self.folder
        if index is None or not index.files:
            return
        if not folder.root.exists():
            said = restore(self.store, folder, self._note(""), accept)
        else:
            held = folder.lock()
            try:
                if not self._is_behind(index.files):
                    return
                said = catch_up(self.store, folder, accept)
            finally:
                held.release()
        say(f"mirror: fetched from {self.store.shown}, written {index.written} by {index.owner.host}: {said}")

    def _is_behind(self, files: Collection[str]) -> bool:
        """Whether another process than this folder's wrote to the mirror last, and is further."""
        assert self.store.index is not None
        mine = _read_note(self.folder).get("token") == self.store.index.owner.token
        return not mine and progress(files) > progress(list_files(self.folder.root, is_left_out))

    def claim(self) -> None:
        """Become the owner of the mirror, and note it in the folder.

        Raises:
            RemoteError: the store refused.
        """
        owner = self.store.claim(self.run, self.folder.root.resolve().name)
        durable.replace_file(self.folder.note, self._note(owner.token))

    def _note(self, token: str) -> bytes:
        """Content of the folder's note; ``token`` is that of the last start here, "" before the first."""
        values = {"address": self.store.shown, "run": self.run, "token": token}
        return json.dumps(values, indent=1, ensure_ascii=False).encode()

    @contextlib.contextmanager
    def beside(self, accelerator: Accelerator) -> Iterator[None]:
        """Mirror the run while the body works; at the end, and after a stop signal, complete the mirror.

        Every process of a training calls it; process 0 mirrors.

        Raises:
            TakenOver: another process mirrors to the address.
            StorageError: the work is done, and the mirror could not be completed.
        """
        patience, limit = (environment_seconds(*each) for each in _WAITS)
        mirror = Mirror(self.store, self.what()) if accelerator.is_main_process else None
        began, is_done = time.monotonic(), False
        with StopSignal(at_once=True):
            try:
                if mirror is not None:
                    mirror.start()
                yield
                is_done = True
                if mirror is not None:
                    mirror.complete(patience)
                    accelerator.print(f"mirror: {self.store.shown} has everything", flush=True)
            except BaseException as error:
                stopping = isinstance(error, (Interrupted, KeyboardInterrupt))
                if is_done and not stopping:
                    raise
                told_at = max(StopSignal.told_at, began) if stopping else time.monotonic()
                with StopSignal():  # the same request, once more
                    if mirror is not None:
                        self._leave(mirror, limit - (time.monotonic() - told_at), accelerator.print)
                    if stopping:  # a launcher ends process 0 once another has ended
                        wait_for_everyone(accelerator, "the mirror")
                raise
            finally:
                if mirror is not None:
                    mirror.stop()

    def _leave(self, mirror: Mirror, seconds: float, say: Callable[..., Any]) -> None:
        """Save what can be saved in this time, and say what the mirror holds.

        Raises:
            TakenOver: another process mirrors to the address.
        """
        if mirror.taken_over is not None:
            raise mirror.taken_over from None
        said = ""
        try:
            mirror.complete(seconds, limit=max(0.1, seconds))
        except StorageError as error:
            said = f"; {' '.join(str(error).split())}"
        index = self.store.index
        assert index is not None
        where = f"{self.store.shown} holds {progress_text(index.files)}, saved {index.written}"
        say(f"mirror: {where}{said}; to go on anywhere: tessera run --mirror {self.store.shown}", flush=True)

    def what(self) -> Mirrored:
        """What the thread mirrors."""
        at_signals = threading.current_thread() is threading.main_thread()

        def lost() -> None:  # the training stops on every process, at the same step
            if at_signals:
                _thread.interrupt_main(signal.SIGTERM)
            else:
                request_stop(signal.SIGTERM)

        return Mirrored(self.folder.root, is_left_out, choose, give_way, lost)


def open_mirror(address: str | None, folder: RunFolder) -> RunMirror | None:
    """The mirror of a run folder, or of a run that is to begin; reads its index.

    Args:
        address: as given; None takes the one that the folder was mirrored to before.
        folder: of the run; it need not exist.

    Returns:
        None without an address, and for ``none``, which the folder then forgets.

    Raises:
        ConfigError: no address, one with a password, or something else is there.
        CheckpointError: the mirror is of another run, or damaged.
        RemoteError: the store gives no access.
    """
    note = _read_note(folder)
    if address == OFF:
        if note:
            durable.remove_file(folder.note)
        return None
    address = address or note.get("address")
    if address is None:
        return None
    store = MirrorStore(address)
    index = store.index = store.read()
    is_empty = index is None or not index.files
    if index is not None and not is_empty and index.run != note.get("run", index.run):
        what, fix = "is the mirror of another run", "give another --mirror, or another --out"
        raise CheckpointError(what, field=store.shown, found=index.name, expected=str(folder.root), fix=fix)
    if not is_empty and not note and folder.recipe.is_file():
        what, fix = "was not made from what this mirror holds", "give another --out, or another --mirror"
        raise CheckpointError(what, field=str(folder.root), found=store.shown, fix=fix)
    run = secrets.token_hex(8) if index is None or is_empty else index.run
    return RunMirror(folder, store, note.get("run", run))


def mirrored_run(address: str, out: str | None, overrides: Mapping[str, Any] | None) -> tuple[Recipe, RunFolder]:
    """The recipe and the folder of a run of which nothing but the mirror is given: ``out``, or ``runs`` and its name.

    Raises:
        ConfigError: there is no run, or a wrong override; see also ``MirrorStore``.
        CheckpointError, RemoteError: see ``MirrorStore``.
    """
    store = MirrorStore(address)
    index = store.index = store.read()
    if index is None or not index.files:
        fix = "give a recipe, which begins one: tessera run RECIPE --mirror ..."
        raise ConfigError("holds no run yet", field="--mirror", found=store.shown, fix=fix)
    with tempfile.TemporaryDirectory() as temporary:
        recipe = load_recipe(str(fetch_recipe(store, Path(temporary))), overrides)
    return recipe, RunFolder(Path("runs", index.name) if out is None else Path(expand(out, "--out")))


def _read_note(folder: RunFolder) -> dict[str, str]:
    """Address of the folder's mirror, id of the run and owner of its last start here; empty without one.

    Raises:
        CheckpointError: it is damaged.
    """
    if not folder.note.is_file():
        return {}
    fix = "move it away, and give --mirror again with another --out"
    values = read_json(folder.note, ("address", "run", "token"), fix=fix)
    return {name: str(value) for name, value in values.items()}


def is_left_out(path: str) -> bool:
    """Whether a file or folder of a run stays here: what belongs to this copy, and what trackers write."""
    return path == _NOTE or (path.startswith("tracking/") and not path.endswith(".json"))


def choose(files: Mapping[str, Stamp], is_there: Callable[[str], bool]) -> list[str]:
    """The files of the next commit: the newest checkpoint of each stage comes before older ones that are missing.

    One of these is added where nothing else is new.
    """
    newest = newest_steps(files)
    later: dict[tuple[str, int], list[str]] = {}
    for path in files:
        checkpoint = checkpoint_of(path)
        if checkpoint is not None and checkpoint[1] < newest[checkpoint[0]]:
            later.setdefault(checkpoint, []).append(path)
    later = {step: paths for step, paths in later.items() if not all(map(is_there, paths))}
    put_off = {path for paths in later.values() for path in paths}
    chosen = [path for path in files if path not in put_off]
    if later and all(map(is_there, chosen)):
        chosen += later[max(later, key=lambda step: step[1])]
    return chosen
