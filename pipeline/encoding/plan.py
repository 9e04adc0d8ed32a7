"""Plan of an export: the images, their order, views and files; written once.

Images keep the order of their source. A file holds ``images_per_shard`` images of one split, the last file the rest.
``plan.json`` has the settings, the counts and the name of a parquet file with the images, which is written before it
and named by its content. Earlier versions wrote the images into ``plan.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foundation.config import from_dict, require, to_dict
from foundation.config_fields import added_later
from foundation.errors import ContractError, DataError, StorageError, way_out
from foundation.storage import durable
from foundation.storage.places import as_place

if TYPE_CHECKING:
    from foundation.codes.spec import CodeSpec
    from foundation.images.sources import ImageSource
    from foundation.storage.places import Place
    from foundation.training.arithmetic import Arithmetic
    from pipeline.encoding.planned_images import PlannedSplit


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How the token dataset is written."""

    batch_size: int | None = None
    """images encoded at once, always, the last batch padded; null measures what this machine does fastest, and
    writes it into the plan"""
    images_per_shard: int = 8192
    """images in one parquet file; a crash loses at most the file being written"""
    flip: bool = False
    """also store the codes of each mirrored training image, as view 1"""
    ten_crop: bool = added_later(False)
    """store ten views of each training image: centre, four corners, and the mirror images of all"""
    corner_scale: float = added_later(1.1)
    """the corners are cut from the image resized to cover this many times height and width; 1 or more"""
    precision: Literal["float32", "tf32", "bf16"] = added_later("float32")  # type: ignore[assignment]
    """arithmetic of the encoder; tf32 and bf16 are faster on GPUs and change some codes"""
    max_code_changes: float = added_later(0.01)
    """with tf32 or bf16: largest share of the codes of the tokenizer's stored images that may change, 0 to 1; more is
    refused"""

    def __post_init__(self) -> None:
        sound = self.batch_size is None or self.batch_size > 0
        require(sound, "batch_size", self.batch_size, "a positive whole number, or null to measure")
        require(self.images_per_shard > 0, "images_per_shard", self.images_per_shard, "a positive whole number")
        require(not (self.flip and self.ten_crop), "ten_crop", self.ten_crop, "false beside flip: it has the flip")
        changes = self.max_code_changes
        require(0 <= changes <= 1, "max_code_changes", changes, "a share from 0 to 1")
        require(1 <= self.corner_scale <= 4, "corner_scale", self.corner_scale, "from 1 to 4")


PLAN = "plan.json"
REENCODE_FIX = "move the run's codes folder away to encode the present images"


@dataclass(frozen=True)
class PlannedShard:
    """One parquet file: images ``start..stop`` of a split, each in ``views``."""

    split: str
    index: int
    start: int
    stop: int
    views: tuple[int, ...]

    @property
    def name(self) -> str:
        """Unique in the plan."""
        return f"{self.split}-{self.index:05d}"

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.stop - self.start

    @property
    def file(self) -> str:
        """Name in the dataset."""
        from foundation.codes.shards import shard_name

        return shard_name(self.split, self.index)

    def path(self, folder: Path) -> Path:
        """Path in the dataset ``folder``."""
        return folder / self.file


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """Images, files and settings of an export.

    Attributes:
        spec: specification of the codes.
        splits: by name.
        images_per_shard: images in one file.
        corner_scale: scale of the corner crops.
        batch_size: images in every batch; codes may depend on it.
        device: ``cpu`` or ``cuda``, the same for all processes; codes may depend on it.
        saved_identity: of a plan that was read; empty for one that was made.
        precision: arithmetic of the encoder, the same for all processes; codes depend on it.
    """

    spec: CodeSpec
    splits: Mapping[str, PlannedSplit]
    images_per_shard: int
    corner_scale: float
    batch_size: int
    device: str
    precision: Arithmetic = "float32"
    saved_identity: str = ""

    @cached_property
    def shards(self) -> tuple[PlannedShard, ...]:
        """Files in order."""
        return tuple(self._shards())

    def _shards(self) -> Iterator[PlannedShard]:
        for name, split in self.splits.items():
            n = len(split.image_ids)
            for index, start in enumerate(range(0, n, self.images_per_shard)):
                yield PlannedShard(name, index, start, min(start + self.images_per_shard, n), split.views)

    @property
    def n_images(self) -> int:
        """Number of images of all splits."""
        return sum(len(split.image_ids) for split in self.splits.values())

    @cached_property
    def identity(self) -> str:
        """SHA-256 of images, views and specification, without batch size, device and precision."""
        if self.saved_identity:
            return self.saved_identity
        total = hashlib.sha256()
        for part in self._json_parts():
            total.update(part.encode())
        return total.hexdigest()

    def _settings(self) -> dict[str, Any]:
        return {
            "contract": self.spec.contract,
            "spec": to_dict(self.spec),
            "images_per_shard": self.images_per_shard,
            "corner_scale": self.corner_scale,
        }

    def _json_parts(self) -> Iterator[str]:
        """All but batch size and device as JSON with sorted keys, in pieces: what earlier versions saved whole."""
        yield json.dumps({**self._settings(), "splits": []}, sort_keys=True).removesuffix("]}")
        for number, (name, split) in enumerate(self.splits.items()):
            yield ", " if number else ""
            yield from split.json_parts(name)
        yield "]}"

    def save_images(self, folder: Path | Place) -> bytes:
        """Write the file of images into a folder or place, unless it is there.

        Returns:
            content of ``plan.json``, to be written next: the plan is complete with it.

        Raises:
            StorageError: the disk refused.
            RemoteError: the store refused.
        """
        from pipeline.encoding.planned_images import described, is_of_plan, open_images, rows_together, write_images

        place, name, splits = as_place(folder), f"plan-{self.identity[:16]}.parquet", described(self.splits)
        rows = rows_together(self.images_per_shard)

        def write(target: Path) -> None:
            write_images(target, self.splits, rows, self.identity)

        def verify(temporary: Path) -> None:
            if replace(self, splits=open_images(temporary, splits), saved_identity="").identity != self.identity:
                raise durable.lost(temporary)

        def is_there() -> bool:
            return place.exists(name) and is_of_plan(place.local(name), self.identity)

        try:
            if not is_there():
                place.publish_file(name, write, verify)
        except StorageError:
            if not is_there():
                raise  # else: another process was first
        what = {**self._settings(), "splits": splits, "images": name, "sha256": self.identity}
        how = {"batch_size": self.batch_size, "device": self.device, "precision": self.precision}
        plan = {"format": 2, "what": what, "how": how}
        return json.dumps({**plan, "sha256": _sha256(plan)}, indent=1, sort_keys=True).encode()

    @classmethod
    def of_place(cls, place: Place) -> ExportPlan:
        """The plan of a place, whose file of images is read from a local copy where the place is a store.

        Raises:
            DataError: see ``from_json``.
            RemoteError: the store gives no access.
        """
        path = place.local(PLAN)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # which from_json says
            name = json.loads(path.read_bytes())["what"]["images"]
            if place.exists(name):
                place.local(name)
        return cls.from_json(path)

    @classmethod
    def from_json(cls, path: Path) -> ExportPlan:
        """Read ``plan.json`` back; the images are read from their file when they are asked for.

        Raises:
            DataError: it is damaged, or the file of images is missing or another one.
        """
        from foundation.codes.spec import CodeSpec

        try:
            saved = json.loads(path.read_bytes())
            what, how = saved["what"], saved["how"]
            if _sha256({name: saved[name] for name in ("format", "what", "how")}) != saved["sha256"]:
                raise ValueError("it was changed after it was written")
            settings = {name: what[name] for name in ("images_per_shard", "corner_scale")}
            settings["saved_identity"] = what.get("sha256", "")
            return cls(spec=from_dict(CodeSpec, what["spec"]), splits=_splits(path, saved), **settings, **how)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            fix = way_out(error, "move it away and run tessera encode again, which makes a new one")
            raise DataError(f"the plan is damaged: {error}", field=str(path), fix=fix) from error


def _splits(path: Path, saved: Mapping[str, Any]) -> dict[str, PlannedSplit]:
    """The images of a saved plan."""
    from pipeline.encoding.planned_images import PlannedSplit, is_of_plan, open_images

    what = saved["what"]
    if saved["format"] == 1:
        return {each["name"]: PlannedSplit.of(each, each["views"]) for each in what["splits"]}
    images = path.parent / what["images"]
    splits = open_images(images, what["splits"])
    if not is_of_plan(images, what["sha256"]):
        raise ValueError(f"{images.name} has the images of another plan")
    return splits


def make_plan(
    spec: CodeSpec, sources: Mapping[str, ImageSource], config: EncodeConfig, *, batch_size: int, device: str
) -> ExportPlan:
    """Plan the export of the images of ``sources``.

    Raises:
        DataError: two images of one split share an id.
    """
    from foundation.images.buckets import buckets_of
    from pipeline.encoding.planned_images import PlannedSplit, first_duplicate

    splits, shapes = {}, spec.preprocess.all_shapes
    for name, source in sources.items():
        values = {"image_ids": source.ids, "labels": source.labels, "grids": buckets_of(source, shapes)}
        splits[name] = PlannedSplit.of(values, views_of(config, name))
        twice = first_duplicate(splits[name].image_ids)
        DataError.unless(twice is None, "two images have one id", field=f"split {name}", found=twice)
    return ExportPlan(
        spec=spec,
        splits=splits,
        images_per_shard=config.images_per_shard,
        corner_scale=config.corner_scale,
        batch_size=batch_size,
        device=device,
        precision=config.precision,
    )


def views_of(config: EncodeConfig, split: str) -> tuple[int, ...]:
    """Views of each image of a split; only ``train`` has more than the centre view."""
    from foundation.images.views import CENTRE, FLIP, TEN_CROP

    if split == "train" and config.ten_crop:
        return TEN_CROP
    return FLIP if split == "train" and config.flip else CENTRE


def require_same_plan(there: ExportPlan, wanted: ExportPlan, path: Path) -> None:
    """Require that the saved plan ``there`` equals this run's plan.

    Raises:
        ContractError: names each difference.
    """
    from foundation.codes.spec import require_same_codes

    require_same_codes(there.spec, wanted.spec, owner="the plan", other="this run")
    rows = [
        (name, getattr(there, name), getattr(wanted, name))
        for name in ("images_per_shard", "corner_scale", "batch_size", "device", "precision")
        if getattr(there, name) != getattr(wanted, name)
    ]
    for name in sorted({*there.splits, *wanted.splits}) if there.identity != wanted.identity else ():
        one, other = there.splits.get(name), wanted.splits.get(name)
        if one is None or other is None:
            rows.append((f"split {name}", one and "some", other and "some"))
        else:
            rows += one.differences(other, name)
    if rows:
        shown = "".join(f"\n    {name}: the plan has {one}, this run {other}" for name, one, other in rows)
        what = f"plans other images or labels, or other settings; differences:{shown}"
        raise ContractError(what, field=str(path), fix=f"restore the planned images and settings, or {REENCODE_FIX}")


def _sha256(plan: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
