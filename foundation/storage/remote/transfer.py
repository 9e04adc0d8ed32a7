"""Bytes of remote files: ranges, and whole files in blocks, each block tried again by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from foundation.storage.remote.errors import RemoteError, ShortRead
from foundation.storage.remote.objects import RemoteObject, file_system, require_same
from foundation.storage.remote.requests import asked

BLOCK_BYTES = 1 << 23
_AT_ONCE = 4


def read_range(source: RemoteObject, start: int, n_bytes: int) -> tuple[bytes, bool]:
    """Bytes ``start`` to ``start + n_bytes`` of a file, which must lie in it.

    Returns:
        The bytes, and whether the store sent no others: a web server that knows no ranges sends the whole file.

    Raises:
        RemoteError: they cannot be read, after several tries; or the file became shorter.
    """
    blocks = [(start + first, n) for first, n in _blocks(n_bytes)] or [(start, 0)]
    first = _answer(source, *blocks[0])
    if len(first) != blocks[0][1]:
        return first[start : start + n_bytes], False
    if len(blocks) == 1:
        return first, True
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
        others = list(pool.map(lambda block: _answer(source, *block), blocks[1:]))
    return b"".join((first, *others)), True


def fetch(source: RemoteObject, target: Path) -> None:
    """Copy a whole file: it has the size, the version and, where the store gives one, the checksum of the list.

    Raises:
        RemoteError: it cannot be read, after several tries, or was replaced meanwhile.
    """
    with open(target, "wb") as file:
        file.seek(max(0, source.size - 1))  # so that others see what it will need
        file.write(b"\0" if source.size else b"")
    blocks = list(_blocks(source.size))
    if blocks and _copy(source, target, *blocks[0]):
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
            for _ in pool.map(lambda block: _copy(source, target, *block), blocks[1:]):
                pass
    _require_checksum(source, target)
    require_same(source)


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(BLOCK_BYTES, size - start)) for start in range(0, size, BLOCK_BYTES))


def _copy(source: RemoteObject, target: Path, start: int, n_bytes: int) -> bool:
    """Copy one block; whether the store gives ranges. One that does not has sent the whole file."""
    answer = _answer(source, start, n_bytes)
    in_ranges = len(answer) == n_bytes
    with open(target, "r+b") as file:
        file.seek(start if in_ranges else 0)
        file.write(answer)
    return in_ranges


def _answer(source: RemoteObject, start: int, n_bytes: int) -> bytes:
    """The bytes asked for; the whole file of a web server that knows no ranges."""
    if not n_bytes:
        return b""

    def ask() -> bytes:
        system, path = file_system(source.address)
        data: bytes = system.cat_file(path, start=start, end=start + n_bytes)
        if len(data) not in (n_bytes, source.size):
            raise ShortRead(f"{len(data):,} of {n_bytes:,} bytes from byte {start:,} on")
        return data

    return asked(ask, source.address)


def _require_checksum(source: RemoteObject, target: Path) -> None:
    if source.checksum is None:
        return
    algorithm, expected = source.checksum
    with open(target, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        what = f"arrived with another {algorithm} than the store states"
        raise RemoteError("changed", what, source.address, "run the same command again; check the network")
