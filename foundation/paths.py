"""Paths in recipes: what ``~`` means, and what a relative path in a file is relative to.

A field of type ``PathText`` is always a path. One of type ``PathOrName`` may also be a name on the hub: it is a path if
it begins with ``.``, ``/`` or ``~``, or if something is there. Either may be an address such as ``s3://bucket/a.tar``,
which is no path and stays as it is.
"""

from __future__ import annotations

import glob
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from foundation.errors import ConfigError


@dataclass(frozen=True)
class PathMark:
    """Marks a text field as a path.

    Attributes:
        or_name: it may also be a name on the hub.
        words: values with a meaning of their own, which are no paths.
    """

    or_name: bool = False
    words: tuple[str, ...] = ()


_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_IN_TEXT = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+://)(?:[^\s/@'\"]*@)?([^\s?'\",)\]}]*)(\?[^\s'\",)\]}]*)?")
_SECRETS = re.compile(r"signature|token|password|secret|credential|api_?key|^sig$|^key$|awsaccesskeyid", re.IGNORECASE)
CACHE_VARIABLE = "TESSERA_CACHE"
PathText = Annotated[str, PathMark()]
PathOrName = Annotated[str, PathMark(or_name=True)]


def expand(path: str | os.PathLike[str], field: str) -> str:
    """A path with the home folder in place of ``~`` or ``~user``.

    Args:
        path: anything else stays as it is.
        field: what an error names.

    Raises:
        ConfigError: there is no such user.
    """
    text = os.fspath(path)
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        fix = f"write the path out, or ./{text} for a name that begins with ~"
        raise ConfigError("names no home folder", field=field, found=text, fix=fix) from error


def is_remote(path: str) -> bool:
    """Whether it is an address, such as ``s3://bucket/train-*.tar``, and no path."""
    return _ADDRESS.match(path) is not None


def without_secrets(text: str) -> str:
    """A text in which addresses have neither a user, a password nor a query."""
    return _IN_TEXT.sub(r"\1\2", text)


def require_no_secret(address: str, field: str) -> None:
    """Refuse an address with a password or a signature: it would be written into recipes, and expires.

    Raises:
        ConfigError: names the field, not the secret.
    """
    if not is_remote(address):
        return
    parts = urllib.parse.urlsplit(address)
    names = [name for name, _ in urllib.parse.parse_qsl(parts.query) if _SECRETS.search(name)]
    if ":" in parts.netloc.rpartition("@")[0] or names:
        raise ConfigError(
            f"holds {f'the secret {names[0]}' if names else 'a password'}, which would be written into the recipe",
            field=field,
            found=without_secrets(address),
            fix="give the address without it; credentials come from the store's own variables, e.g. AWS_ACCESS_KEY_ID, "
            "GOOGLE_APPLICATION_CREDENTIALS or HF_TOKEN",
        )


def cache_root() -> Path:
    """Folder of what can be made again: ``TESSERA_CACHE``, else ``tessera`` below the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "tessera"


def is_there(path: str) -> bool:
    """Whether a path, or a pattern such as ``shards/*.tar``, names anything."""
    return Path(path).exists() or next(glob.iglob(path), None) is not None  # noqa: PTH207


def from_root(path: str | Path) -> str:
    """An absolute path without . and .. in it; links stay as they are."""
    return os.path.normpath(Path(path).absolute())


def beside(path: str, folder: Path, mark: PathMark, field: str) -> str:
    """What a path in a file means.

    Args:
        path: as it stands there.
        folder: of the file.
        mark: of the field.
        field: what an error names.

    Returns:
        An absolute path, or the name if nothing of that name is there.

    Raises:
        ConfigError: it is not beside the file, but in the working directory.
    """
    path = expand(path, field)
    if not path or Path(path).is_absolute() or path in mark.words or is_remote(path):
        return path
    joined = from_root(folder / path)
    if is_there(joined):
        return joined
    here = from_root(path)
    if is_there(here):
        shown = os.path.relpath(here, folder)
        raise ConfigError(
            "is not there: a path in a file is relative to the file",
            field=field,
            found=f"{path}, that is {joined}",
            expected=f"a path relative to {folder}",
            fix=f"write {shown} for {here}, which is relative to the working directory",
        )
    return path if mark.or_name and not path.startswith(".") else joined


def absolute(path: str, mark: PathMark) -> str:
    """A path from the root; a name, word or address stays as it is."""
    if is_remote(path):
        return path
    is_name = mark.or_name and not path.startswith(".") and not is_there(path)
    return path if not path or path in mark.words or is_name else from_root(path)


def relative_to(path: str, folder: Path) -> str | None:
    """An absolute path seen from a folder, with / between its parts; None for a name, or on another drive."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix() if Path(path).is_absolute() else None
    except ValueError:
        return None
