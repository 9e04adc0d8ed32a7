"""Images that a worker's machine cannot read, and this one can: they must not count as unusable."""

from __future__ import annotations

from collections.abc import Callable

from foundation.errors import DataError
from foundation.images.failures import Failure

_MAY_DIFFER = ("vanished", "forbidden", "not_a_file", "unavailable", "missing")
"""codes of failures that one machine may meet and another not"""


def require_lost_here_too(failure: Failure, read: Callable[[], object]) -> None:
    """Refuse the failure of an image that a worker could not read, if this machine can.

    Args:
        failure: as the worker met it.
        read: reads the image here, or raises.

    Raises:
        DataError: naming the image.
    """
    if failure.code not in _MAY_DIFFER:
        return
    try:
        read()
    except Exception:  # decoders raise any exception; it is lost here too
        return
    fix = "let every machine see the same images under the same path, then run the same command again"
    what = "a worker cannot read it, and this machine can"
    raise DataError(what, field=failure.image_id, found=f"{failure.code}: {failure.reason}", fix=fix)
