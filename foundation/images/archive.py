"""Images in tar archives in the webdataset layout: a sample's files share their name up to its first dot.

Example: ``0001.jpg`` and ``0001.cls``, or ``0001.json`` with the class in it. Archives on a disk are read in place,
archives in a store by way of a bounded cache; nothing is unpacked. An image's id is ``archive/key``.
"""

from __future__ import annotations

import copy
import glob
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from foundation.config import digest
from foundation.errors import DataError
from foundation.images.archive_index import LABEL_FIELD, ArchiveIndex, index_of
from foundation.images.array_image import AnyImage
from foundation.images.class_names import class_numbers, require_plausible_classes, require_tidy
from foundation.images.failures import BadImage, require_sane_bytes
from foundation.images.folder import SUFFIXES, suffixes_of
from foundation.images.headers import upright_size
from foundation.images.ids import Ids
from foundation.images.inventory import PassedOverFiles
from foundation.images.kinds import way_to_open
from foundation.images.preprocess import MAX_PIXELS, decode_any
from foundation.images.windowed import Streamed
from foundation.paths import cache_root, expand, is_remote, without_secrets
from foundation.storage.disk_cache import DiskCache
from foundation.storage.remote.errors import RemoteError
from foundation.storage.remote.files import (
    DEFAULT_CACHE_GIB,
    LocalFile,
    ReadAhead,
    RemoteFile,
    StoredFile,
    stream_cache,
)
from foundation.storage.remote.objects import braces, list_objects
from foundation.storage.retrying import retried
from foundation.threads import map_in_threads

_INDEX_BYTES = 1 << 34
_HEADER_BYTES = 1 << 16


class ArchiveSource:
    """The images of some archives, in the order of archives' names and of members.

    Attributes:
        groups: (archives with images,) index of the first image of each.
        streamed: what archives in a store need; None on a disk.
    """

    def __init__(
        self,
        path: str,
        label_field: str | None,
        field: str = "data.source.path",
        class_names: tuple[str, ...] | None = None,
        *,
        trust_classes: bool = False,
        max_pixels: int = MAX_PIXELS,
        cache_gib: float = DEFAULT_CACHE_GIB,
        arrays: bool = False,
    ) -> None:
        """Open the archives' indexes, or build them.

        Args:
            path: a file, a folder or a pattern, on a disk or in a store.
            label_field: see ``ArchiveData``.
            field: what error messages call ``path``.
            class_names: the classes of the training images, when these are others.
            trust_classes: see ``ArchiveData``.
            max_pixels, arrays: see ``decode_any``.
            cache_gib: size of the cache of archives that are in a store.

        Raises:
            DataError: no archive, one that is damaged or compressed, no image, two images of one name, one without a
                class, or classes that hardly are such.
        """
        self._max_pixels, self._arrays = max_pixels, arrays
        archives = _remote(path, field, cache_gib) if is_remote(path) else _local(path, field)
        _require_own_names(archives, field)
        indexes = _indexes(archives, label_field, arrays)
        self.passed_over, self.notes = _passed_over(indexes), _notes(indexes)
        n_bytes = sum(each.size for each in archives)
        self.streamed = Streamed(n_bytes, int(cache_gib * 2**30)) if is_remote(path) else None
        self.fingerprint = digest([[a.name, a.size, i.digest] for a, i in zip(archives, indexes, strict=True)])
        used = [i for i, each in enumerate(indexes) if len(each.keys)]
        expected = f"members ending in {', '.join(sorted(suffixes_of(arrays=arrays)))}"
        shown = without_secrets(path)
        DataError.unless(len(used) > 0, "the archives hold no images", field=field, found=shown, expected=expected)
        self._archives = [archives[i] for i in used]
        self._offsets = np.concatenate([indexes[i].offsets for i in used])
        self._sizes = np.concatenate([indexes[i].sizes for i in used])
        counts = np.array([len(indexes[i].keys) for i in used], np.int64)
        self.groups = np.cumsum(counts) - counts
        self.ids: Sequence[str] = Ids([(f"{archives[i].name}/", indexes[i].keys) for i in used])
        self.labels: np.ndarray | None = None
        self.class_names: tuple[str, ...] = ()
        if label_field is not None:
            classes = self._classes([indexes[i].labels for i in used], label_field)
            require_plausible_classes(classes, LABEL_FIELD, trusted=trust_classes or class_names is not None)
            self.labels, self.class_names = class_numbers(classes, class_names, LABEL_FIELD)
        self._ahead = ReadAhead()

    def read(self, index: int) -> AnyImage:
        """The decoded image ``ids[index]``.

        Raises:
            BadImage: with the reason.
        """
        size = int(self._sizes[index])
        require_sane_bytes(size)
        return decode_any(self._bytes(index, size), self._max_pixels, arrays=self._arrays)

    def some(self, indices: np.ndarray) -> ArchiveSource:
        """Some of the images, to be read by another process: with their places in their archives, without names."""
        chosen = copy.copy(self)
        chosen._archives = [_anywhere(self._archives[self._archive_of(int(i))]) for i in indices]
        chosen._offsets, chosen._sizes = self._offsets[indices], self._sizes[indices]
        chosen.groups = np.arange(len(indices))
        chosen.ids, chosen.labels, chosen.passed_over, chosen.notes = (), None, PassedOverFiles(), []
        return chosen

    def require_here(self) -> None:
        """See ``sources.require_here``."""
        for path in {each.path for each in self._archives if isinstance(each, LocalFile)}:
            fix = "mount or copy it under this path on every machine"
            DataError.unless(path.is_file(), "is not on this machine", field=str(path), found=platform.node(), fix=fix)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the upright image ``ids[index]``, from the head of its member.

        Raises:
            BadImage: it cannot be read.
            OSError: it cannot be opened.
        """
        size = int(self._sizes[index])
        try:
            return upright_size(self._bytes(index, min(size, _HEADER_BYTES)))
        except OSError:  # a header that is longer, such as one with a preview in it
            return upright_size(self._bytes(index, size))

    def _bytes(self, index: int, size: int) -> bytes:
        """The first ``size`` bytes of a member."""
        archive = self._archives[self._archive_of(index)]
        try:
            data = retried(lambda: archive.read(int(self._offsets[index]), size))
        except RemoteError as error:
            raise BadImage(error.code, str(error)) from error
        except FileNotFoundError as error:
            raise BadImage("vanished", "the archive is no longer there") from error
        except OSError as error:
            code = "forbidden" if isinstance(error, PermissionError) else "unavailable"
            raise BadImage(code, f"the archive cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise BadImage("vanished", "the archive is shorter than when it was listed")
        return data

    def ahead(self, indices: np.ndarray) -> None:
        """Fetch the archives of some images in a thread, in this order; most of each will be read soon."""
        which = dict.fromkeys(self._archive_of(int(each)) for each in indices)
        remote = [each for i in which if isinstance(each := self._archives[i], RemoteFile)]
        for each in remote:
            each.expect()
        self._ahead.want([each.prepare for each in remote])

    def _archive_of(self, index: int) -> int:
        return int(np.searchsorted(self.groups, index, side="right")) - 1

    def _classes(self, labels: list[pa.Array], label_field: str) -> list[str]:
        """The class of each image; every image has one."""
        column = pa.chunked_array(labels, pa.string())
        if column.null_count:
            missing = self.ids[int(np.flatnonzero(column.is_null().to_numpy())[0])]
            expected = f"a member {missing}.{label_field.partition('.')[0]}"
            found = f"{label_field}, missing for {column.null_count:,} of {len(column):,} images"
            raise DataError("some images have no class", field=LABEL_FIELD, found=found, expected=expected)
        coded = column.dictionary_encode().unify_dictionaries()
        names: list[str] = coded.chunk(0).dictionary.to_pylist()
        numbers = np.concatenate([each.indices.to_numpy() for each in coded.chunks])
        for number, name in enumerate(names):
            if name != name.strip():
                require_tidy([name], LABEL_FIELD, f"of {self.ids[int(np.flatnonzero(numbers == number)[0])]}")
        return [names[i] for i in numbers]


def _local(path: str, field: str) -> list[StoredFile]:
    pattern = Path(expand(path, field))
    found: list[Path] = []
    if pattern.is_dir():
        found = sorted(pattern.glob("*.tar"))
    elif pattern.is_file():
        found = [pattern]
    else:
        names = braces(str(pattern))
        found = sorted({Path(each) for name in names for each in glob.glob(name)})  # noqa: PTH207
        missing = [name for name in names if not glob.has_magic(name) and not os.path.lexists(name)]
        if found and missing:
            what, shown = "some archives of the pattern are not there", f"{len(missing):,}, e.g. {missing[0]}"
            raise DataError(what, field=field, found=shown, fix="copy them again, or correct the numbers in braces")
    expected, fix = "a .tar file, a folder of them, or a pattern", "check the path; decompress archives to .tar"
    if not found and pattern.is_dir():
        others = sorted(each.name for each in pattern.iterdir() if not each.name.startswith("."))
        path = f"{path}, with {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else path
        fix = f"{_way_out(others)}; decompress archives to .tar"
    DataError.unless(len(found) > 0, "no such archives", field=field, found=path, expected=expected, fix=fix)
    return [LocalFile(each) for each in found]


def _remote(path: str, field: str, cache_gib: float) -> list[StoredFile]:
    cache = stream_cache(cache_gib)
    return [RemoteFile(each, cache) for each in list_objects(path, ".tar", field)]


def _anywhere(archive: StoredFile) -> StoredFile:
    """The same archive for another process, in any folder, that reads a good part of it."""
    if isinstance(archive, LocalFile):
        return LocalFile(archive.path.absolute())
    archive = copy.copy(archive)
    if isinstance(archive, RemoteFile):
        archive.expect()
    return archive


def _require_own_names(archives: Sequence[StoredFile], field: str) -> None:
    seen: set[str] = set()
    for each in archives:
        if each.name in seen:
            what = "two archives have one name, which would give two images one id"
            raise DataError(what, field=field, found=each.name)
        seen.add(each.name)


def _indexes(archives: Sequence[StoredFile], label_field: str | None, arrays: bool) -> list[ArchiveIndex]:
    """The index of each archive; processes that begin together begin with different ones."""
    kept = DiskCache(cache_root() / "archives", _INDEX_BYTES)
    first = os.getpid() % len(archives)
    numbers = [*range(first, len(archives)), *range(first)]
    with tqdm(total=len(archives), desc="indexing archives", delay=2, unit="file") as progress:

        def index(i: int) -> ArchiveIndex:
            found = index_of(archives[i], label_field, kept, arrays=arrays)
            progress.update()
            return found

        found = map_in_threads(index, numbers)
    return [found[(i - first) % len(archives)] for i in range(len(archives))]


def _passed_over(indexes: Sequence[ArchiveIndex]) -> PassedOverFiles:
    found = PassedOverFiles()
    for index in indexes:
        for kind, reason, example, count in index.passed_over:
            found.add(kind, reason, example, count)
    return found


def _notes(indexes: Sequence[ArchiveIndex]) -> list[str]:
    n = sum(not each.is_kept for each in indexes)
    if not n:
        return []
    return [f"the index of {n:,} archives could not be kept in {cache_root()}, and is built at every start"]


def _way_out(names: list[str]) -> str:
    if any(Path(name).suffix.lower() in SUFFIXES for name in names):
        return "--data.source.type folder reads images in folders"
    kind, fix = next((each for each in map(way_to_open, map(Path, names)) if each[0] != "a file"), ("", ""))
    return f"for {kind}, {fix}" if kind else "--data.source.type folder reads images in folders"
