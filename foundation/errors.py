"""The errors that users see: each names the field, the value, what was expected and a fix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

_MISSING = object()


class TesseraError(ValueError):
    """A refusal that says what to do.

    The command line prints the message alone, without a traceback; a library user can catch the class.

    Args:
        what: one sentence that says what is wrong.
        field: dotted name of the field or option at fault, e.g. ``tokenizer.training.steps``.
        found: the offending value.
        expected: what would have been right.
        fix: what to do now.
    """

    def __init__(
        self,
        what: str,
        *,
        field: str | None = None,
        found: object = _MISSING,
        expected: object = _MISSING,
        fix: str | None = None,
    ) -> None:
        details = {"found:": found, "expected:": expected, "fix:": _MISSING if fix is None else fix}
        lines = [f"  {name:9} {value}" for name, value in details.items() if value is not _MISSING]
        super().__init__("\n".join([what if field is None else f"{field}: {what}", *lines]))
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)  # as it is: classes take other arguments than a message

    @classmethod
    def unless(cls, condition: bool, what: str, **details: Any) -> None:
        """Raise this error, with the arguments that it takes, unless ``condition`` holds."""
        if not condition:
            raise cls(what, **details)


def _again(cls: type[TesseraError], args: tuple[Any, ...], state: dict[str, Any]) -> TesseraError:
    """An error in another process."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class ConfigError(TesseraError):
    """A recipe or model configuration has a wrong key or value."""


class DataError(TesseraError):
    """Images or codes that cannot be used as they are."""


class ContractError(TesseraError):
    """Two parts that do not belong together, e.g. a prior and another tokenizer's codes."""


class CheckpointError(TesseraError):
    """A checkpoint or model folder that is damaged, incomplete or of another run."""


class StorageError(TesseraError):
    """The disk refused a write; whatever was complete before is still there."""


class TrainingError(TesseraError):
    """Training cannot go on, e.g. because the loss is not finite."""


class LostProcessError(TrainingError):
    """Another process of the training has ended or hangs; this one is sound."""


class EngineError(TesseraError):
    """The machines that share a command's work are gone, or cannot give what it needs."""


class Interrupted(Exception):
    """Training stopped at a step boundary after a signal, with a checkpoint saved.

    Args:
        signal_number: the signal; the process exits with 128 + this number.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal_number,)


class RemoteTraceback(Exception):
    """The traceback in another process, as the cause of the exception that it raised."""


def portable(error: BaseException) -> BaseException:
    """The exception itself if it arrives in another process as it is, else its text."""
    import pickle

    with contextlib.suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def way_out(error: Exception, damaged: str) -> str:
    """What to do about a file that cannot be read.

    Args:
        error: what the reader raised.
        damaged: the way out where the content is at fault. It does not apply where the system refused to read: the file
            may be whole, and nothing should happen to it.
    """
    import errno
    import re

    named = re.search(r"os error (\d+)", str(error))  # of readers that are not written in Python
    number = int(named[1]) if named else getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return "make it readable for this user (chmod u+r), and its folders too; the file itself may be whole"
    if number not in (None, errno.ENOENT, errno.EINVAL, errno.EISDIR, errno.ENOTDIR):
        return "check the disk and the network drive, then run the same command again; the file itself may be whole"
    return damaged


def one_line(error: Exception) -> str:
    """The message of another library's exception in one line, at most 400 characters; its class if it has none."""
    return " ".join(str(error).split())[:400] or type(error).__name__


@contextlib.contextmanager
def refusals(what: str, field: str, fix: str) -> Iterator[None]:
    """A context in which every error of other libraries becomes a ``StorageError`` that begins with ``what``."""
    try:
        yield
    except TesseraError:
        raise
    except Exception as error:
        raise StorageError(f"{what}: {one_line(error)}", field=field, fix=fix) from error


def hub_refusals(name: object) -> contextlib.AbstractContextManager[None]:
    """``refusals`` of the hub: its client raises the errors of its transport too."""
    fix = "check the name (OWNER/NAME), the network and the login (hf auth login), then try again"
    return refusals("the hub refused", str(name), fix)


def closest(name: object, known: Iterable[object]) -> str | None:
    """The known name that is most like a mistyped one, if any is like it.

    >>> closest("bqs", ["ibq", "bsq"])
    'bsq'
    """
    import difflib

    choices = [str(each) for each in known]
    swapped = [each for each in choices if each in _swapped(str(name))]
    return next(iter(swapped or difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)), None)


def _swapped(name: str) -> set[str]:
    """A name with two neighbouring characters exchanged, in each way; the commonest slip at a keyboard."""
    return {f"{name[:i]}{name[i + 1]}{name[i]}{name[i + 2 :]}" for i in range(len(name) - 1)}


def nearest(name: str, known: Iterable[object]) -> str:
    """A hint for a mistyped name: the nearest known one, and the whole choice if it is short or nothing is near.

    >>> nearest("widht", ["width", "depth"])
    "did you mean 'width'? (known: depth, width)"
    >>> nearest("colour", ["width", "depth"])
    'choose one of: depth, width'
    """
    names = sorted(str(each) for each in known)
    close = closest(name, names)
    choice = ", ".join(names) if len(names) <= 40 else f"{', '.join(names[:40])}, and {len(names) - 40} more"
    if close is None:
        return f"choose one of: {choice}"
    return f"did you mean '{close}'?" + (f" (known: {choice})" if len(names) <= 10 else "")
