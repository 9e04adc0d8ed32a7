"""Files of ``torch.save`` and ``pickle.dump`` (zip, legacy, plain), read without running anything.

Declared sizes are compared with the bytes of the file before anything is allocated. Of the calls in a pickle, those
that make tensors, ordered dictionaries, sets and bytes are answered. ``read_tensors`` reads a flat dictionary of
tensors, as published weights mostly are.
"""

from __future__ import annotations

import functools
import io
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foundation.errors import CheckpointError, way_out
from foundation.unpickling.unpickler import Machine, sound_key
from foundation.unpickling.values import DTYPES, LazyTensor, Name, Storage, from_bytes

Arguments = tuple[Any, ...]
MAX_PICKLE_BYTES = 1 << 26
_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_HEADER = 30  # bytes of a zip entry's local header, without its name
_SHARING = 4  # all tensors together may have this many times the bytes of the file
_DAMAGE = (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile)
"""what the standard library raises over damaged files"""
_CUT_OFF = "the file is cut off or damaged: download or copy it again"


def read_torch_file(path: Path) -> Any:
    """What a file holds: containers, numbers, ``LazyTensor`` for tensors, ``PickledObject`` for everything else.

    Raises:
        CheckpointError: damaged, cut off, not such a file, or one that asks for what is refused.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LEGACY_START))
            if start[:4] == _ZIP:
                return _read_zip(path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                if start == _LEGACY_START:
                    return _read_legacy(mapped, path.stat().st_size, _on_disk(path))
                return _read_plain(mapped, path.stat().st_size)
    except CheckpointError as error:
        raise error if error.field else CheckpointError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix=_CUT_OFF) from error


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins so is one that ``read_torch_file`` can try: a zip archive, or a pickle."""
    return start[:4] == _ZIP or start[:1] in (b"\x80", b"(", b"c", b"}", b"]")


def read_tensors(path: Path, fix: str) -> dict[str, torch.Tensor]:
    """Name -> tensor, in the host's memory; nothing in the file is run.

    Args:
        path: a file that ``torch.save`` wrote.
        fix: what the reader of an error should do.

    Raises:
        CheckpointError: damaged, or something else than a dictionary of tensors.
    """
    try:
        values = read_torch_file(path)
    except (CheckpointError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"cannot be read: {reason}", field=str(path), fix=way_out(error, fix)) from error
    flat = isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, LazyTensor) for name, value in values.items()
    )
    if not flat:
        raise CheckpointError("is not a dictionary of tensors", field=str(path), found=type(values).__name__, fix=fix)
    return {name: value.read() for name, value in values.items()}


class Rebuilder:
    """Answers calls by name; ``NotImplemented`` for those that it does not know or whose arguments do not fit.

    Args:
        tensor_bytes: limit of all tensors together; they may share storages, but not without end.
        stored_bytes: what bytes inside a pickle stand for that are a file of their own (torch saves a storage so when a
            module is pickled plainly), or None if that is not allowed here.
    """

    def __init__(self, tensor_bytes: int, stored_bytes: Callable[[bytes], Any] | None = None) -> None:
        self._limit, self._declared, self._stored_bytes = tensor_bytes, 0, stored_bytes
        self._answers: dict[str, Callable[[Arguments], Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._tensor._rebuild_from_type_v2": self._subclass,
            "torch.storage._load_from_bytes": self._stored,
            "collections.OrderedDict": _mapping,
            "__builtin__.set": _set,
            "builtins.set": _set,
            "_codecs.encode": _encoded,
        }

    def __call__(self, name: Name, arguments: Arguments) -> Any:
        """What calling ``name`` would give.

        Raises:
            CheckpointError: a tensor that cannot be, or tensors far larger than the file.
        """
        answer = self._answers.get(name.path)
        return NotImplemented if answer is None else answer(arguments)

    def _tensor(self, arguments: Arguments) -> Any:
        storage, offset, size, stride = arguments[:4] if len(arguments) >= 4 else (None,) * 4
        if not isinstance(storage, Storage):
            raise CheckpointError("holds a damaged tensor", found="a tensor without a storage")
        tensor = storage.view(offset, size, stride)
        self._declared += tensor.n_bytes
        if self._declared > self._limit:
            found, expected = f"{self._declared:,} bytes", f"at most {self._limit:,}"
            raise CheckpointError("declares tensors far larger than the file", found=found, expected=expected)
        return tensor

    def _subclass(self, arguments: Arguments) -> Any:
        fits = len(arguments) >= 3 and isinstance(arguments[0], Name) and isinstance(arguments[2], tuple)
        nested = fits and arguments[0].path == "torch._tensor._rebuild_from_type_v2"
        return self(arguments[0], arguments[2]) if fits and not nested else NotImplemented

    def _stored(self, arguments: Arguments) -> Any:
        data = arguments[0] if len(arguments) == 1 else None
        if self._stored_bytes is None or not isinstance(data, (bytes, str)):
            return NotImplemented
        return self._stored_bytes(data.encode("latin-1") if isinstance(data, str) else data)


def _parameter(arguments: Arguments) -> Any:
    return arguments[0] if arguments and isinstance(arguments[0], LazyTensor) else NotImplemented


def _mapping(arguments: Arguments) -> Any:
    if not arguments:
        return {}
    pairs: Any = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else [()]
    if not all(isinstance(each, (list, tuple)) and len(each) == 2 for each in pairs):
        return NotImplemented
    return {sound_key(key): value for key, value in pairs}


def _set(arguments: Arguments) -> Any:
    sound = len(arguments) == 1 and isinstance(arguments[0], list)
    return {sound_key(each) for each in arguments[0]} if sound else NotImplemented


def _encoded(arguments: Arguments) -> Any:
    sound = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] in ("latin1", "latin-1")
    return arguments[0].encode("latin-1") if sound else NotImplemented


def _read_zip(path: Path) -> Any:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {each.filename: each for each in archive.infolist()}
        _require_plain_entries(archive, size)
        roots = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        what, fix = "is a zip archive without one checkpoint in it", "unpack it and name the checkpoint inside"
        CheckpointError.unless(len(roots) == 1, what, found=f"{len(entries)} files", fix=fix)
        prefix = roots[0].removesuffix("data.pkl")
        if entries[roots[0]].file_size > MAX_PICKLE_BYTES:
            raise CheckpointError("has an absurdly large pickle", found=f"{entries[roots[0]].file_size:,} bytes")
        order = archive.read(f"{prefix}byteorder") if f"{prefix}byteorder" in entries else b"little"
        if order != b"little":
            raise CheckpointError("was written on a machine of another byte order", found=repr(order[:20]))
        pickle = archive.read(roots[0])

    def storage(name: str, key: str, n_elements: int) -> Storage:
        dtype, entry = _dtype(name), entries.get(f"{prefix}data/{key}")
        if entry is None or entry.file_size != n_elements * dtype.itemsize:
            found = "nothing" if entry is None else f"{entry.file_size:,} bytes"
            what, expected = f"has no sound data for storage {key!r}", f"{n_elements * dtype.itemsize:,} bytes"
            raise CheckpointError(what, found=found, expected=expected, fix=_CUT_OFF)
        return Storage(dtype, n_elements, functools.partial(_zip_values, path, entry.filename, dtype))

    return Machine(_persistent(storage), Rebuilder(_SHARING * size)).load(io.BytesIO(pickle))


def _require_plain_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse what torch never writes and zip bombs are made of: compression, entries that overlap or repeat."""
    end = 0
    for entry in sorted(archive.infolist(), key=lambda each: each.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError("has compressed entries, which no checkpoint has", found=repr(entry.filename)[:100])
        if entry.header_offset < end or entry.header_offset + _HEADER + entry.file_size > size:
            raise CheckpointError("has entries that overlap or reach beyond the file", found=repr(entry.filename)[:100])
        end = entry.header_offset + _HEADER + entry.file_size
    CheckpointError.unless(len(set(archive.namelist())) == len(archive.namelist()), "has two entries of one name")


@functools.lru_cache(maxsize=4)
def _zip_values(path: Path, name: str, dtype: torch.dtype) -> torch.Tensor:
    try:
        with zipfile.ZipFile(path) as archive:
            return from_bytes(archive.read(name), dtype)
    except _DAMAGE as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix=_CUT_OFF) from error


def _read_legacy(stream: Any, size: int, values: Callable[[int, int], bytes]) -> Any:
    """The format before torch 1.6: four pickles, a list of storages, then the storages, each after its length.

    Args:
        stream: all bytes.
        size: how many.
        values: reads bytes at a position, now or later.
    """
    positions: dict[str, int] = {}
    seen: dict[str, Storage] = {}

    def storage(name: str, key: str, n_elements: int) -> Storage:
        dtype = _dtype(name)
        n_bytes = n_elements * dtype.itemsize
        CheckpointError.unless(n_bytes <= size, "declares a storage larger than the file", fix=_CUT_OFF)
        described = Storage(dtype, n_elements, lambda: from_bytes(values(positions[key], n_bytes), dtype))
        known = seen.setdefault(key, described)
        if (known.dtype, known.n_elements) != (dtype, n_elements):
            raise CheckpointError(f"describes storage {key!r} in two ways")
        return known

    machine = Machine(_persistent(storage), Rebuilder(_SHARING * size))
    magic, version, _ = (machine.load(stream) for _ in range(3))
    if magic != _LEGACY_MAGIC or version != 1001:
        raise CheckpointError("is a torch file of an unknown version", found=str(version)[:100])
    root, keys = machine.load(stream), machine.load(stream)
    for key in keys if isinstance(keys, list) else []:
        header = stream.read(8)
        n_bytes = seen[key].n_elements * seen[key].dtype.itemsize if isinstance(key, str) and key in seen else -1
        if len(header) < 8 or n_bytes < 0 or struct.unpack("<q", header)[0] != seen[key].n_elements:
            raise CheckpointError("has storages that do not fit their description", fix=_CUT_OFF)
        positions[key] = stream.tell()
        stream.seek(n_bytes, io.SEEK_CUR)
        CheckpointError.unless(stream.tell() <= size, "ends before its last storage", fix=_CUT_OFF)
    if seen.keys() - positions.keys():
        raise CheckpointError("ends before its storages", found=f"{len(positions)} of {len(seen)}", fix=_CUT_OFF)
    return root


def _read_plain(stream: Any, size: int) -> Any:
    """A pickle that torch did not frame; storages inside are files of the older format, as bytes."""
    nothing = _persistent(lambda name, key, n: _refuse_persistent())
    return Machine(nothing, Rebuilder(_SHARING * size, _stored)).load(stream)


def _stored(data: bytes) -> Any:
    if not data.startswith(_LEGACY_START):
        raise CheckpointError("holds a storage of an unknown format", found=repr(data[:20]))
    return _read_legacy(io.BytesIO(data), len(data), lambda start, n: data[start : start + n])


def _refuse_persistent() -> Storage:
    raise CheckpointError("refers to storages that are not in the file")


def _on_disk(path: Path) -> Callable[[int, int], bytes]:
    def values(start: int, n_bytes: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(n_bytes)

    return values


def _persistent(storage: Callable[[str, str, int], Storage]) -> Callable[[Any], Any]:
    """Resolve persistent ids: ("storage", class, key, location, length); the older format adds a sixth entry.

    The older format also has ("module", class, file, source text), which stands for the class.
    """

    def resolve(identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]
        plain = isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage"
        if not plain or (len(identity) == 6 and identity[5] is not None):
            raise CheckpointError("refers to something else than a storage")
        _, name, key, _, n_elements = identity[:5]
        if not isinstance(name, Name) or not isinstance(key, str) or type(n_elements) is not int or n_elements < 0:
            raise CheckpointError("refers to a storage in an unknown way")
        return storage(name.path, key, n_elements)

    return resolve


def _dtype(path: str) -> torch.dtype:
    module, _, name = path.rpartition(".")
    if name not in DTYPES or module not in ("torch", "torch.cuda", "torch.storage"):
        raise CheckpointError("has a storage of an unknown type", found=path[:100])
    return DTYPES[name]
