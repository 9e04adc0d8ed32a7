"""Retries of what failed for a reason that may pass: on disks, network disks and object stores."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

SHORT_PAUSES = (0.1, 0.5, 2.0)
"""seconds before each new try of a read from a disk"""
LONG_PAUSES = (0.1, 0.5, 2.0, 8.0, 30.0, 60.0, 120.0)
"""seconds before each new request to an object store: an outage of three minutes is waited out"""
_MAY_PASS = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EPIPE"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH"),
    )
    if hasattr(errno, name)
}
T = TypeVar("T")


def may_pass(error: BaseException) -> bool:
    """Whether an error of a disk or a socket may be gone at the next try."""
    return isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in _MAY_PASS)


def retried(
    read: Callable[[], T],
    pauses: Sequence[float] = SHORT_PAUSES,
    passes: Callable[[Exception], bool] = may_pass,
    waiting: Callable[[Exception, float], None] = lambda error, pause: None,
) -> T:
    """What ``read`` returns; tried again after an error that may pass.

    Args:
        read: called without arguments.
        pauses: seconds before each new try.
        passes: whether an error may be gone at the next try.
        waiting: called before each pause with the error and the seconds.

    Raises:
        the last error of them, or one that does not pass.
    """
    for pause in pauses:
        try:
            return read()
        except Exception as error:
            if not passes(error):
                raise
            waiting(error, pause)
            time.sleep(pause)
    return read()
