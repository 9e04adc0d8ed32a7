"""Requests to remote stores: tried again while the failure may pass, refused with an error for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from foundation.errors import TesseraError
from foundation.paths import without_secrets
from foundation.storage.remote.errors import Act, described, is_transient
from foundation.storage.retrying import LONG_PAUSES, SHORT_PAUSES, retried

LOOK_PAUSES = (*SHORT_PAUSES, 4.0, 8.0)
"""seconds before each new try of a first look at a store, which should not hide a mistyped address for long"""
SAID_AFTER_S = 30.0
T = TypeVar("T")


def asked(ask: Callable[[], T], address: str, pauses: Sequence[float] = LONG_PAUSES, act: Act = "read") -> T:
    """What a store answers.

    A wait of more than ``SAID_AFTER_S`` is said on stderr.

    Args:
        ask: sends the request; called again after a failure that may pass.
        address: of the file, for messages.
        pauses: seconds before each new try.
        act: what is done with the file, for messages.

    Raises:
        RemoteError: refused, or every try failed.
    """
    began = time.monotonic()

    def say(error: Exception, pause: float) -> None:
        waited = time.monotonic() - began
        if waited + pause >= SAID_AFTER_S:
            name, reason = without_secrets(address), " ".join(str(described(error, address, act)).split())
            print(f"waiting for {name} since {waited:.0f} s, next try in {pause:.0f} s: {reason}", file=sys.stderr)

    try:
        return retried(ask, pauses, is_transient, say)
    except TesseraError:
        raise
    except Exception as error:
        raise described(error, address, act) from error
