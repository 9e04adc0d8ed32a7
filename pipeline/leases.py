"""Who works on what: a file for each piece of work that some process has begun.

Leases only save double work. Whatever is made is published all or nothing, the first writer wins and the second must
have made the same, so that nothing depends on a lease being there, or being right.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundation.storage.durable import is_left_behind, temporary_name

HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""a lease that was not renewed for so long is given up, whoever had it"""


@dataclass(frozen=True)
class Holder:
    """Who has a lease.

    Attributes:
        work: name of the piece of work.
        host, pid: of the process.
        seconds: since it was renewed last, by the clock of the disk.
        alive: whether the process may still be working.
    """

    work: str
    host: str
    pid: int
    seconds: float
    alive: bool


class Leases:
    """The leases in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def claim(self, work: str) -> Iterator[bool]:
        """Try to take a piece of work for as long as the context lasts; says whether it was taken.

        Where no lease can be written, the work is taken all the same.
        """
        path = self.folder / f"{work}.json"
        owner = temporary_name(path).name
        if not self._take(path, owner):
            yield False
            return
        ended = threading.Event()
        beating = threading.Thread(target=_renew, args=(path, ended), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            ended.set()
            beating.join()
            with contextlib.suppress(OSError):
                if owner in path.read_text():  # else another process has given it up for us and taken it
                    path.unlink()

    def holders(self) -> list[Holder]:
        """Everybody who has a lease now."""
        found = [self._holder(path) for path in sorted(self.folder.glob("*.json"))]
        return [each for each in found if each is not None]

    def clear(self) -> None:
        """Remove all leases, when nothing is left to do."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _take(self, path: Path, owner: str) -> bool:
        content = json.dumps({"owner": owner, "host": platform.node(), "pid": os.getpid()})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return True
        for _ in range(2):
            try:
                with open(path, "x") as file:
                    file.write(content)
            except FileExistsError:
                holder = self._holder(path)
                if holder is not None and holder.alive:
                    return False
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            except OSError:
                return True
            return True
        return False

    def _holder(self, path: Path) -> Holder | None:
        try:
            seconds, owner = self._now() - path.stat().st_mtime, ""
        except OSError:
            return None
        try:
            saved = json.loads(path.read_text())
            host, pid, owner = str(saved["host"]), int(saved["pid"]), str(saved["owner"])
        except (OSError, ValueError, KeyError, TypeError):  # being written, or torn by a crash
            host, pid = "unknown", 0
        alive = seconds < SILENT_SECONDS and not (owner and is_left_behind(path.with_name(owner)))
        return Holder(path.stem, host, pid, seconds, alive)

    def _now(self) -> float:
        """By the clock of the disk, which machines with clocks of their own share."""
        probe = temporary_name(self.folder / "clock")
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _renew(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
