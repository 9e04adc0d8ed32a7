"""Mirror of a folder in a store, kept up to date by a thread beside the work that writes the folder.

A round lists the folder at one moment, holds what is new, puts it and commits. Nobody but ``complete`` waits for a
round. Failures of the store are said, and tried again for as long as the work lasts.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from foundation.errors import StorageError, TesseraError
from foundation.paths import without_secrets
from foundation.storage.durable import file_sha256
from foundation.storage.remote.mirror_index import Entry, LostObjects, MirrorStore, TakenOver
from foundation.storage.snapshot import GROWING, ChangedMeanwhile, Stamp, held, list_files

_LOOK_S = 2.0
"""between two looks at the folder"""
_GROWTH_S = 60.0
"""between two commits of nothing but longer logs"""
_AGAIN_S = 30.0
"""before a round that failed is tried again; the store's own tries come before"""
_SAY_S = 30.0
_AT_ONCE_S = 0.05
_SHARE_OF_LOOKING = 50
"""looks may take one part of this number of the time"""

Choice = Callable[[Mapping[str, Stamp], Callable[[str], bool]], Collection[str]]
"""the files that are there, and whether one is in the mirror as it is => the files of the next commit"""


@dataclass(frozen=True)
class Mirrored:
    """What of a folder is mirrored, and who hears of it.

    Attributes:
        root: the folder.
        is_left_out: path below it => whether it is no part of the mirror.
        choose: the files of the next commit.
        at_start: called in the thread, e.g. to lower its priority.
        lost: called in the thread when another owner stands in the index.
    """

    root: Path
    is_left_out: Callable[[str], bool]
    choose: Choice = lambda files, is_there: list(files)
    at_start: Callable[[], object] = lambda: None
    lost: Callable[[], object] = lambda: None


class Mirror:
    """The thread, which ``start`` begins.

    Args:
        store: claimed by this process.
        what: is mirrored.

    Attributes:
        taken_over: why it has ended, once another process mirrors to the address.
    """

    def __init__(self, store: MirrorStore, what: Mirrored) -> None:
        self.store, self._what = store, what
        self.taken_over: TakenOver | None = None
        self._known: dict[str, tuple[Stamp, Entry]] = {}
        self._asked = self._answered = 0
        self._hurried = self._over = False
        self._changed = threading.Condition()
        self._failing_since: datetime | None = None
        self._reason = ""
        self._progress = self._committed = time.monotonic()
        self._left = ""
        self._pause = _LOOK_S
        self._swept = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def complete(self, patience: float, limit: float | None = None) -> None:
        """Return when everything that is in the folder now is in the mirror; says after 30 s what it waits for.

        Args:
            patience: seconds without progress, after a failure, until it gives up.
            limit: seconds until it gives up in any case, which leaves out what is not needed to go on; None: no limit.

        Raises:
            StorageError: it gave up; the last commit stands.
            TakenOver: another process mirrors to the address.
        """
        began = said = time.monotonic()
        with self._changed:
            self._asked, self._progress = self._asked + 1, began
            self._hurried = limit is not None
            self._changed.notify_all()
            while self._answered < self._asked:
                now = time.monotonic()
                if self.taken_over is not None:
                    raise self.taken_over
                waited = limit is not None and now - began >= limit
                if waited or (self._failing_since is not None and now - self._progress >= patience):
                    raise self._incomplete(now - began)
                if now - said >= _SAY_S:
                    said = now
                    self._say(f"waiting for the mirror at {self.store.shown}: {self._left or 'looking what is new'}")
                left = 1.0 if limit is None else min(1.0, limit - (now - began))
                self._changed.wait(max(0.01, left))

    def stop(self) -> None:
        """End the thread; what it does at this moment is left."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def _incomplete(self, waited: float) -> StorageError:
        reason = self._reason or f"{self._left or 'the upload'} was not finished in {waited:.0f} s"
        index = self.store.index
        held_there = (
            f"; the mirror holds what was there at {index.written}" if index is not None and index.files else ""
        )
        fix = "the run folder has everything; run the same command again, which completes the mirror"
        return StorageError(f"the mirror is not complete: {reason}{held_there}", field=self.store.shown, fix=fix)

    def _work(self) -> None:
        self._what.at_start()
        while not self._over and self.taken_over is None:
            asked = self._asked
            try:
                is_done = self._round()
            except ChangedMeanwhile:
                time.sleep(_AT_ONCE_S)
            except TakenOver as error:
                self.taken_over = error
                self._what.lost()
            except Exception as error:  # a store's library raises any class; the work goes on without the mirror
                self._fail(error)
                self._wait(asked, _AGAIN_S)
            else:
                self._recover()
                if is_done:
                    self._answer(asked)
                    self._wait(asked, self._pause)

    def _answer(self, asked: int) -> None:
        with self._changed:
            self._answered = max(self._answered, asked)
            self._changed.notify_all()

    def _wait(self, asked: int, seconds: float) -> None:
        """Wait, but not where ``complete`` was called since, nor when the end has come."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self._over and self._asked == asked and time.monotonic() < until:
                self._changed.wait(max(0.01, until - time.monotonic()))

    def _round(self) -> bool:
        """Put and commit what is new; whether nothing is left to do."""
        began, self._left = time.monotonic(), ""
        listed = list_files(self._what.root, self._what.is_left_out)
        self._pause = max(_LOOK_S, _SHARE_OF_LOOKING * (time.monotonic() - began))
        chosen = self._what.choose(listed, lambda name: self._is_there(name, listed[name]))
        new = {name: listed[name] for name in chosen if not self._is_there(name, listed[name])}
        if self._may_wait(chosen, new):
            return True
        hurried = self._hurried
        with held(self._what.root, new) as places:
            self._put(new, places, hurried=hurried)
        if self._over:
            return False
        try:
            self.store.commit(self._entries(chosen))
        except LostObjects:
            self._known.clear()
            raise
        self._committed = self._progress = time.monotonic()
        self._known = {name: self._known[name] for name in chosen}
        if not self._hurried:
            self._tidy()
        return hurried or len(chosen) == len(listed)

    def _is_there(self, name: str, stamp: Stamp) -> bool:
        """Whether a file as it is now has been put."""
        return name in self._known and self._known[name][0] == stamp

    def _entries(self, names: Collection[str]) -> dict[str, Entry]:
        return {name: self._known[name][1] for name in sorted(names)}

    def _may_wait(self, chosen: Collection[str], new: Collection[str]) -> bool:
        """Whether the last commit has all, or all but lines of logs."""
        index = self.store.index
        assert index is not None
        if not new:
            return self._entries(chosen) == index.files
        is_log = set(chosen) == set(index.files) and all(name.endswith(GROWING) for name in new)
        recent = time.monotonic() - self._committed < _GROWTH_S and self._asked == self._answered
        return is_log and recent

    def _put(self, new: Mapping[str, Stamp], places: Mapping[str, Path], *, hurried: bool) -> None:
        total, done = sum(stamp[1] for stamp in new.values()), 0
        for i, (name, place) in enumerate(places.items()):
            if self._over or self._hurried != hurried:
                raise ChangedMeanwhile("what is needed to go on comes first")
            self._left = f"{i:,} of {len(new):,} files, {done / 1e9:.2f} of {total / 1e9:.2f} GB are there"
            entry = Entry(file_sha256(place), place.stat().st_size)
            self.store.put(name, entry, place)
            self._known[name] = new[name], entry
            self._progress, done = time.monotonic(), done + entry.size

    def _tidy(self) -> None:
        """Remove what the commit no longer names, and once what an earlier process left."""
        if not self._swept:
            self.store.find_strays()
            self._swept = True
        self.store.remove_unnamed()

    def _fail(self, error: Exception) -> None:
        text = without_secrets(" ".join(str(error).split()))
        self._reason = text if isinstance(error, TesseraError) else f"{type(error).__name__}: {text}"
        if self._failing_since is None:
            self._failing_since = datetime.now()
            last = datetime.fromtimestamp(time.time() - (time.monotonic() - self._committed))
            what = (
                f"nothing is saved at {self.store.shown} since {last:%H:%M:%S}; the work goes on, and it is tried again"
            )
            self._say(f"warning: {what}: {self._reason}")

    def _recover(self) -> None:
        if self._failing_since is not None:
            self._say(f"the mirror at {self.store.shown} is up to date again")
        self._failing_since, self._reason = None, ""

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
