"""Images that cannot be used: each has a code for programs and a reason for people."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.errors import DataError

FAILURE_CODES = {
    "unreadable": "empty, damaged, truncated, or not an image of a known format",
    "too_large": "more pixels, longer sides, a longer shape or more bytes than are accepted",
    "pixel_format": "a pixel format whose range of values is not defined",
    "vanished": "listed when the images were planned, and no longer there",
    "forbidden": "the permission to read it is missing",
    "not_a_file": "a pipe, device, socket, folder or symbolic link",
    "unavailable": "the storage did not deliver it",
}
"""what each code means"""


class BadImage(DataError):
    """One image that cannot be used.

    Args:
        code: a key of ``FAILURE_CODES``.
        what, details: as for ``DataError``.
    """

    def __init__(self, code: str, what: str, **details: object) -> None:
        assert code in FAILURE_CODES, code
        super().__init__(what, **details)  # type: ignore[arg-type]
        self.code = code


@dataclass(frozen=True)
class Failure:
    """An image that could not be used.

    Attributes:
        image_id: which.
        reason: in one line, the same every time.
        code: a key of ``FAILURE_CODES``.
    """

    image_id: str
    reason: str
    code: str = "unreadable"


def failure_of(image_id: str, error: Exception) -> Failure:
    """What to list for an image whose reading or decoding ended in ``error``."""
    code = error.code if isinstance(error, BadImage) else "unreadable"
    named = isinstance(error, (DataError, OSError)) and str(error)
    text = str(error) if named else f"{type(error).__name__}: {error}"
    return Failure(image_id, "; ".join(line.strip() for line in text.splitlines()), code)
