"""Errors of remote stores: which may pass, which do not, and messages without credentials.

fsspec's file systems raise the errors of their own libraries (aiohttp, botocore, httpx ...), and some turn every
failure into ``FileNotFoundError``, with the true one as its cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from foundation.errors import DataError
from foundation.paths import without_secrets
from foundation.storage.retrying import may_pass

_CLIENTS = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "httpcore", "httpx", "requests", "s3fs", "urllib3"}
_GONE, _FORBIDDEN, _CHANGED = (404, 410), (401, 403), (412, 416)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "RefreshError")
"""classes of botocore and google-auth"""
_BUSY = (408, 409, 425, 429)
_FORGOTTEN = "NoSuchUpload"
"""of S3: an upload in parts that was completed, and the answer lost, or that was given up; it begins again"""
Act = Literal["read", "written", "removed"]
"""what is done with a remote file"""


class RemoteError(DataError):
    """A remote file that cannot be read or written.

    Args:
        code: ``vanished``, ``forbidden``, ``changed``, or ``unavailable`` if every try failed.
        what, address: the reason, and the file.
        fix: what to do.
    """

    def __init__(self, code: str, what: str, address: str, fix: str | None = None) -> None:
        super().__init__(what, field=without_secrets(address), fix=fix)
        self.code = code


class ShortRead(OSError):
    """Fewer bytes than asked for; it may pass."""


def code_of(error: Exception) -> str:
    """What an error of a store means: a code of ``RemoteError``; ``unavailable`` may pass, the others do not."""
    chain = list(_chain(error))
    if any(type(each).__name__ == _FORGOTTEN for each in chain):
        return "unavailable"
    for each in chain:
        status = _status(each)
        if status is not None:
            return _code_of_status(status)
    if any(type(each).__name__ in _NO_CREDENTIALS for each in chain):
        return "forbidden"
    if any(isinstance(each, ShortRead) or may_pass(each) or _is_of_client(each) for each in chain):
        return "unavailable"
    if any(isinstance(each, PermissionError) for each in chain):
        return "forbidden"
    return "vanished" if any(isinstance(each, FileNotFoundError) for each in chain) else "broken"


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return not isinstance(error, RemoteError) and code_of(error) == "unavailable"


def described(error: Exception, address: str, act: Act = "read") -> RemoteError:
    """An error of a store as a reason for people.

    Raises:
        DataError: a package is missing.
    """
    if isinstance(error, RemoteError):
        return error
    if isinstance(error, ImportError):
        raise missing_package(error, address) from error
    code = code_of(error)
    cause = list(_chain(error))[-1]
    text = without_secrets(" ".join(f"{type(cause).__name__}: {cause}".split()))
    words = {
        "vanished": "is not there" if act == "read" else f"cannot be {act}: its bucket or repository is not there",
        "forbidden": f"may not be {act} with these credentials",
        "changed": "is another file than when it was listed",
        "unavailable": f"could not be {act} after several tries ({text})",
    }
    known = code if code in words else "unavailable"
    return RemoteError(known, words.get(code, f"cannot be {act} ({text})"), address, _fix(code, act))


def _fix(code: str, act: Act) -> str | None:
    if code == "vanished":
        return None if act == "read" else "make it with the store's own tools, or check the address"
    if code == "forbidden":
        return "check the store's own variables for credentials, e.g. AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS"
    if code == "unavailable":
        return "check the network and the store; run the same command again"
    return None if act == "read" else "check the address, and what the store allows there"


def missing_package(error: ImportError, address: str) -> DataError:
    """What to install so that an address can be read; fsspec's message names it."""
    fix = f"{without_secrets(str(error)).strip().rstrip('.')}; or copy the files to a local disk"
    return DataError("needs a package that is not installed", field=without_secrets(address), fix=fix)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _status(error: BaseException) -> int | None:
    """The status of the answer of a web server, under the names that libraries give it."""
    if type(error).__module__ == "aiohttp.http_exceptions":  # its own opinion of an answer that was cut
        return None
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        answer = answer.get("ResponseMetadata", {})
        found = answer.get("HTTPStatusCode")
    else:
        found = getattr(answer, "status_code", None)
    for name in ("status", "code"):
        found = getattr(error, name, None) if found is None else found
    return found if isinstance(found, int) and 100 <= found < 600 else None


def _code_of_status(status: int) -> str:
    if status in _GONE:
        return "vanished"
    if status in _FORBIDDEN:
        return "forbidden"
    if status in _CHANGED:
        return "changed"
    return "unavailable" if status >= 500 or status in _BUSY or status < 300 else "broken"


def _is_of_client(error: BaseException) -> bool:
    """An error of a client library without a status: a connection that was refused, cut, or answered in part."""
    return type(error).__module__.partition(".")[0] in _CLIENTS and not isinstance(error, ImportError)
