"""Reads are tried again after errors that may pass, and after no others."""

import errno

import pytest

from foundation.storage import retrying
from foundation.storage.retrying import retried


class Storage:
    """Fails a few times before it delivers."""

    def __init__(self, error: OSError, n: int) -> None:
        self.error, self.n, self.calls = error, n, 0

    def read(self) -> str:
        self.calls += 1
        if self.calls <= self.n:
            raise self.error
        return "data"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), OSError(errno.ESTALE, "x"), TimeoutError("slow")])
def test_an_error_that_may_pass_is_tried_again(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    assert retried(Storage(error, 3).read) == "data"
    with pytest.raises(OSError, match=r"x|slow"):
        retried(Storage(error, 4).read)


def test_an_error_that_does_not_pass_is_not_tried_again() -> None:
    storage = Storage(FileNotFoundError(errno.ENOENT, "x"), 9)
    with pytest.raises(FileNotFoundError):
        retried(storage.read)
    assert storage.calls == 1
