"""Windows and macOS in simulation: modules of this package meet an ``os``, an ``open`` and paths that act as there.

Lacking functions are not there, folders cannot be opened, what is open or mapped cannot be renamed or removed, names
are equal without regard to case, text is cp1252 with two characters a line where nothing else is said. Code of other
packages sees the system that is there, and paths keep their forward slashes.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import importlib
import os
import pkgutil
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

try:
    import fcntl
except ImportError:  # Windows itself
    fcntl = None  # type: ignore[assignment]

from foundation.storage import names
from foundation.storage.names import is_portable

PACKAGES = ("foundation", "stage1_tokenizer", "stage2_prior", "pipeline")
_NOT_ON_WINDOWS = (
    *("sysconf", "pread", "preadv", "pwrite", "pwritev", "getuid", "geteuid", "uname", "fork", "mkfifo", "setsid"),
    *("killpg", "getpgid", "statvfs", "sched_getaffinity", "posix_fadvise", "chown", "confstr", "mknod", "nice"),
    *("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "O_SYNC"),
)
_NOT_ON_MACOS = ("preadv", "pwritev", "sched_getaffinity", "posix_fadvise", "O_DIRECT", "memfd_create")
_SIGNALS_NOT_ON_WINDOWS = (
    "SIGPIPE",
    "SIGHUP",
    "SIGKILL",
    "SIGALRM",
    "SIGUSR1",
    "SIGUSR2",
    "SIGQUIT",
    "SIGCHLD",
    "alarm",
)
_ELSEWHERE = ("/proc", "/sys")
System = Callable[[], AbstractContextManager[Counter[str]]]
"""what a test runs in"""


@contextlib.contextmanager
def linux() -> Iterator[Counter[str]]:
    """The system that is there, for comparison."""
    yield Counter()


@contextlib.contextmanager
def windows(*, links: bool = True) -> Iterator[Counter[str]]:
    """Windows.

    Args:
        links: whether the disk has hard links: NTFS has, FAT and exFAT do not.

    Yields:
        how often it refused what Linux would have done.
    """
    refused: Counter[str] = Counter()
    if os.name == "nt":  # the system itself
        yield refused
        return
    replaced = {
        "name": "nt",
        "O_BINARY": 0,
        "open": _open_descriptor,
        "fsync": _flush_written,
        "kill": _kill,
        "link": os.link if links else _no_links,
    }
    with pytest.MonkeyPatch.context() as patch:
        _without_linux(patch)
        _patch_paths(patch, refused, windows=True)
        modules = list(our_modules())
        for module in modules:
            _replace(patch, module, "os", _Other(os, _NOT_ON_WINDOWS, replaced))
            _replace(patch, module, "signal", _Other(signal, _SIGNALS_NOT_ON_WINDOWS, {"SIGBREAK": signal.SIGTTIN}))
            _replace(patch, module, "fcntl", None, of=fcntl)
            patch.setattr(module, "open", _open_file, raising=False)
        yield refused


@contextlib.contextmanager
def macos(*, full_flush: bool = True) -> Iterator[Counter[str]]:
    """macOS before version 11, whose Python has no preadv.

    Args:
        full_flush: whether the disk can be asked to empty its own memory; network disks refuse.

    Yields:
        a count of flushes, ``full`` or refused.
    """
    seen: Counter[str] = Counter()
    if fcntl is None:
        pytest.skip("macOS is simulated on Unix alone")

    def control(descriptor: int, command: int, *_: object) -> int:
        assert command == 51
        seen["full" if full_flush else "refused"] += 1
        if not full_flush:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return 0

    def sysconf(name: str) -> int:
        if name == "SC_AVPHYS_PAGES":
            raise ValueError("unrecognized configuration name")
        return os.sysconf(name)

    with pytest.MonkeyPatch.context() as patch:
        _without_linux(patch)
        _patch_paths(patch, seen, windows=False)
        for module in list(our_modules()):
            _replace(patch, module, "os", _Other(os, _NOT_ON_MACOS, {"sysconf": sysconf}))
            _replace(patch, module, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=control), of=fcntl)
        yield seen


def our_modules() -> Iterator[ModuleType]:
    """Every module of this package."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            yield importlib.import_module(found.name)


def unportable(folder: Path) -> list[str]:
    """Names below a folder that another system cannot have, or cannot have beside each other."""
    paths = sorted(folder.rglob("*"))
    seen = Counter(path.relative_to(folder).as_posix().casefold() for path in paths)
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if seen[name.casefold()] > 1 or not is_portable(Path(name).name)]


class _Other:
    """A module of which names are missing or replaced."""

    def __init__(self, module: ModuleType, missing: tuple[str, ...], replaced: dict[str, Any]) -> None:
        self.__dict__.update(replaced)
        self._module, self._missing = module, missing

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)


def _replace(patch: pytest.MonkeyPatch, module: ModuleType, name: str, other: Any, of: Any = None) -> None:
    real = of or {"os": os, "signal": signal}[name]
    if vars(module).get(name) is real:
        patch.setattr(module, name, other)


def _without_linux(patch: pytest.MonkeyPatch) -> None:
    """No /proc and no /sys, and a host whose name for temporary files is not known yet."""
    names._host.cache_clear()
    for method in ("open", "read_text", "read_bytes", "readlink", "stat"):
        patch.setattr(Path, method, _elsewhere(getattr(Path, method)))
    for method in ("exists", "is_file", "is_dir"):
        patch.setattr(Path, method, _elsewhere(getattr(Path, method), answer=False))
    patch.setattr(names, "_host", _once(names._host.__wrapped__))


def _once(function: Callable[[], str]) -> Callable[[], str]:
    found: list[str] = []

    def call() -> str:
        if not found:
            found.append(function())
        return found[0]

    return call


def _elsewhere(real: Callable, answer: Any = None) -> Callable:
    def method(path: Path, *arguments: Any, **options: Any) -> Any:
        if not str(path).startswith(_ELSEWHERE):
            return real(path, *arguments, **options)
        if answer is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return answer

    return method


def _patch_paths(patch: pytest.MonkeyPatch, refused: Counter[str], *, windows: bool) -> None:
    """Paths without regard to case; on Windows with its rules of what is open, its text and its names."""
    real = {name: getattr(Path, name) for name in ("replace", "rename", "unlink", "mkdir", "symlink_to", "rmdir")}

    def free(path: Path) -> Path:
        path = same_but_case(path)
        if windows and _asked_by_us() and in_use(path):
            refused["in use"] += 1
            refused[f"in use: {path.name}"] += 1
            raise PermissionError(errno.EACCES, "it is being used by another process", str(path))
        return path

    def replace(path: Path, target: Path) -> Path:
        target = new_name(Path(target))
        if target.is_dir() and windows:
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        return real["replace"](free(path), free(target))

    def rename(path: Path, target: Path) -> Path:
        target = new_name(Path(target))
        if windows and target.exists():
            refused["exists"] += 1
            raise FileExistsError(errno.EEXIST, "a file exists already", str(target))
        return real["rename"](free(path), target)

    def new_name(path: Path) -> Path:
        if windows and not is_portable(path.name):
            raise OSError(errno.EINVAL, "the file name is incorrect", str(path))
        return same_but_case(path)

    def rmtree(path: Any, ignore_errors: bool = False, **options: Any) -> None:
        if windows and _asked_by_us() and in_use(Path(path)):
            refused["in use"] += 1
            refused[f"in use: {Path(path).name}"] += 1
            if not ignore_errors:
                raise PermissionError(errno.EACCES, "it is being used by another process", str(path))
            return
        real_rmtree(path, ignore_errors, **options)

    def symlink_to(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "a required privilege is not held by the client", str(path))

    real_rmtree = shutil.rmtree
    patch.setattr(Path, "replace", replace)
    patch.setattr(Path, "rename", rename)
    patch.setattr(Path, "unlink", lambda path, *args, **options: real["unlink"](free(path), *args, **options))
    patch.setattr(Path, "rmdir", lambda path: real["rmdir"](free(path)))
    patch.setattr(Path, "mkdir", lambda path, *args, **options: real["mkdir"](new_name(path), *args, **options))
    patch.setattr(shutil, "rmtree", rmtree)
    if windows:
        patch.setattr(Path, "symlink_to", symlink_to)
        patch.setattr(Path, "open", _elsewhere(_open_file))
        patch.setattr(Path, "read_text", _read_text)
        patch.setattr(Path, "write_text", _write_text)


def _asked_by_us() -> bool:
    """Whether this package calls, and not another one, which has its own ways on Windows: filelock's, for example."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals["__name__"].split(".")[0] in (__name__.split(".")[0], "pathlib"):
        frame = frame.f_back
    return frame is not None and frame.f_globals["__name__"].split(".")[0] in PACKAGES


def same_but_case(path: Path) -> Path:
    """The path under which a system without regard to case has it: the one that exists, if one does."""
    if os.path.lexists(path) or not os.path.isdir(path.parent):
        return path
    wanted = path.name.casefold()
    return next((path.with_name(name) for name in os.listdir(path.parent) if name.casefold() == wanted), path)


def in_use(path: Path) -> bool:
    """Whether this process has a file or what is below a folder open, or mapped into its memory."""
    own = os.path.realpath(path)
    return any(each == own or each.startswith(f"{own}/") for each in _open_paths())


def _open_paths() -> Iterator[str]:
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/self/fd/{number}")
    with builtins.open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        yield from (line.split(None, 5)[5].rstrip("\n") for line in maps if line.count(" ") >= 5 and "/" in line)


def _open_descriptor(path: Any, flags: int, *arguments: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, flags, *arguments)


def _flush_written(descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(descriptor)


def _kill(pid: int, number: int) -> None:
    raise AssertionError(f"os.kill({pid}, {number}) ends the process, or interrupts the console, on Windows")


def _no_links(source: Any, target: Any) -> None:
    raise OSError(errno.EINVAL, "Incorrect function", str(source))


def _open_file(
    file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any, **options: Any
) -> Any:
    if isinstance(file, (str, Path)) and {"w", "x", "a"} & set(mode) and not is_portable(Path(file).name):
        raise OSError(errno.EINVAL, "Invalid argument", str(file))
    if isinstance(file, (str, Path)):
        file = same_but_case(Path(file))
    if "b" in mode:
        return open(file, mode, buffering, encoding, *rest, **options)
    if "r" not in mode and not rest:
        options["newline"] = options.get("newline") or "\r\n"
    return open(file, mode, buffering, encoding or "cp1252", *rest, **options)


def _read_text(path: Path, encoding: str | None = None, errors: str | None = None, **options: Any) -> str:
    if str(path).startswith(_ELSEWHERE):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with _open_file(path, "r", encoding=encoding, errors=errors, **options) as file:
        return file.read()


def _write_text(path: Path, data: str, encoding: str | None = None, errors: Any = None, newline: Any = None) -> int:
    with _open_file(path, "w", encoding=encoding, errors=errors, newline=newline) as file:
        return file.write(data)
