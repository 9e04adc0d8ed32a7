"""Files that commands write: they replace nothing that the same command with the same settings did not write.

A folder keeps a record of what was written into it, ``.tessera-outputs.jsonl``: a line for each file with its SHA-256
and a hash of the settings that made it. A file that is not in the record, or has changed since, is someone else's: the
command is refused before it computes anything. Files whose settings are others are refused too, with the way out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.config import digest
from foundation.errors import ConfigError
from foundation.storage import durable
from foundation.storage.places import LocalPlace, Place, place_at

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from foundation.images.preview import Preview

RECORD = ".tessera-outputs.jsonl"
_OVERVIEW = "overview"
_RUN_PARTS = ("tokenizer", "codes", "prior", "checkpoints", "samples", "uses", "evaluation")
_MARKS = {
    "a model": ("config.json",),
    "a token dataset": ("manifest.json", "data"),
    "a token dataset that is not finished": ("plan.json", "data"),
    "a saved dataset": ("state.json", "dataset_info.json"),
    "saved datasets": ("dataset_dict.json",),
}
"""files that tell what a folder is"""
_FIX = "give another --out, or move what is there away"


@dataclass
class Outputs:
    """A folder and what a command writes into it.

    Args:
        folder: made at the first write.
        settings: everything that the content of the files depends on; values that JSON can hold.
        option: the option that names the folder.
    """

    folder: Path
    settings: Mapping[str, Any]
    option: str = "--out"
    _digest: str = field(init=False)

    def __post_init__(self) -> None:
        self._digest = digest(dict(self.settings))

    def require_free(self, names: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        """Refuse the folder before anything is computed, if a file that will be written there is not ours to replace.

        Args:
            names: of the files.
            patterns: of files whose names are not known yet, as for ``Path.glob``.

        Raises:
            ConfigError: such a file, one that was made with other settings, or a folder that is a part of a run.
            StorageError: the folder cannot be written.
        """
        require_place(self.folder, self.option)
        known = _read_record(self.folder)
        there = {self.folder / name for name in names} | {each for text in patterns for each in self.folder.glob(text)}
        for path in sorted(each for each in there if each.exists() or each.is_symlink()):
            self._require_ours(path, known.get(path.name))
        _require_writable(self.folder)

    def write(self, name: str, content: bytes, *, overview: bool = False) -> Path:
        """Write a file, and note that it is ours; ``overview`` marks a picture of several images.

        Raises:
            ConfigError: a file of that name is not ours to replace.
            StorageError: the disk refused.
        """
        path = self.folder / name
        if path.exists() or path.is_symlink():
            self._require_ours(path, _read_record(self.folder).get(name))
        durable.replace_file(path, content)
        self._note(name, hashlib.sha256(content).hexdigest(), _OVERVIEW * overview)
        return path

    def write_image(self, name: str, image: Image.Image, *, overview: bool = False) -> Path:
        """Write a picture in the format of its name's ending; see ``write``."""
        buffer, path = io.BytesIO(), self.folder / name
        buffer.name = path.name  # from which Pillow takes the format
        with durable.writing(path):
            image.save(buffer)
        return self.write(name, buffer.getvalue(), overview=overview)

    def write_pixels(self, stem: str, pixels_YXC: np.ndarray, preview: Preview) -> Path:
        """Write an image in full: ``STEM.png``, or where PNG cannot hold it ``STEM.npy`` and a preview ``STEM.png``."""
        from foundation.images.image_bytes import file_content, file_ending
        from foundation.images.preprocess import to_pil

        ending = file_ending(preview.preprocess)
        if ending != ".png":
            self.write_image(f"{stem}.png", to_pil(preview(pixels_YXC[None])[0]), overview=True)
        return self.write(f"{stem}{ending}", file_content(pixels_YXC, preview.preprocess))

    def publish(self, name: str, write: Callable[[Path], None]) -> Path:
        """Have ``write`` make a file that is too large for the memory at a temporary path; see ``write``.

        Raises:
            ConfigError: a file of that name is not ours to replace.
            StorageError: the disk refused, or the file is there with other content.
        """
        path = self.folder / name
        if path.exists() or path.is_symlink():
            self._require_ours(path, _read_record(self.folder).get(name))
        durable.publish_file(path, write)
        self._note(name, durable.file_sha256(path))
        return path

    def _note(self, name: str, sha256: str, kind: str = "") -> None:
        entry = {"name": name, "sha256": sha256, "settings": self._digest, "kind": kind}
        durable.append_line(self.folder / RECORD, json.dumps(entry))

    def _require_ours(self, path: Path, entry: dict[str, Any] | None) -> None:
        known = entry is not None and path.is_file() and entry.get("sha256") == durable.file_sha256(path)
        problem, expected = "is there already, and not in the record of what commands wrote there", "a new file"
        ConfigError.unless(known, problem, field=self.option, found=str(path), expected=expected, fix=_FIX)
        assert entry is not None
        same, problem = entry.get("settings") == self._digest, "holds what this command wrote with other settings"
        same_again = "the same command again" + (", with its --seed," if "seed" in self.settings else "")
        fix = f"{_FIX}; {same_again} may replace its own files"
        ConfigError.unless(same, problem, field=self.option, found=str(path), fix=fix)


def output_at(path: Path, settings: Mapping[str, Any], option: str = "--out") -> Outputs:
    """The folder of a single file, checked to be free for it.

    Raises:
        ConfigError, StorageError: see ``Outputs.require_free``.
    """
    outputs = Outputs(path.parent, settings, option)
    outputs.require_free([path.name])
    return outputs


def overviews(folder: Path) -> set[str]:
    """Names of the pictures of several images that commands wrote into a folder: they are no images to read."""
    known = {name for name, each in _read_record(folder).items() if each.get("kind") == _OVERVIEW}
    return known | ({"grid.png"} if (folder / "samples.json").is_file() else set())


def require_place(folder: Path, option: str = "--out") -> None:
    """Refuse a folder that is a file, or inside a part of a run, a model or a token dataset.

    Raises:
        ConfigError: naming the part.
    """
    found, fix = str(folder), "choose another folder"
    for place in (folder.resolve(), *folder.resolve().parents):
        ConfigError.unless(
            not place.is_file(), "is a file", field=option, found=str(place), expected="a folder", fix=fix
        )
        what = "is a place of a run, which keeps its own " + place.name
        in_run = place.name in _RUN_PARTS and (place.parent / "recipe.yaml").is_file()
        ConfigError.unless(not in_run, what, field=option, found=found, fix=fix)
        owner = next((owner for owner, names in _MARKS.items() if all((place / name).exists() for name in names)), None)
        what = f"is a place of {owner}"
        ConfigError.unless(owner is None, what, field=option, found=f"{found}, in {place}", fix=fix)
    is_run = (folder / "recipe.yaml").is_file() and any((folder / name).is_dir() for name in _RUN_PARTS)
    ConfigError.unless(not is_run, "is a place of a run", field=option, found=found, fix=f"{found}/NAME, for example")


def output_place(target: str, option: str = "--out") -> Place:
    """The place of many outputs, a folder or an address, checked not to be a part of something else.

    Raises:
        ConfigError: see ``require_place`` and ``place_at``.
        RemoteError: the store gives no access.
    """
    place = place_at(target, option)
    if isinstance(place, LocalPlace):
        require_place(place.folder, option)
        return place
    for owner, names in {**_MARKS, "a run": ("recipe.yaml",)}.items():
        is_one = all(place.exists(name) or place.names(name) for name in names)
        fix = "give another address"
        ConfigError.unless(not is_one, f"is a place of {owner}", field=option, found=place.shown, fix=fix)
    return place


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """File name => its latest line; files of damaged lines count as someone else's."""
    found: dict[str, dict[str, Any]] = {}
    path = folder / RECORD
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            found[str(entry["name"])] = dict(entry)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def _require_writable(folder: Path) -> None:
    """Try a file in the folder; one that is new is made for that and removed, as what follows may be refused.

    Raises:
        StorageError: it cannot be written.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    probe = durable.temporary_name(folder / RECORD)
    with durable.writing(probe):
        probe.touch()
        probe.unlink()
    for each in made:
        with contextlib.suppress(OSError):  # another process has begun to write there
            each.rmdir()
