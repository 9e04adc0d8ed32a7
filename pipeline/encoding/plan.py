"""Plan of an export: the images, their order, views and files; written once.

Images keep the order of their source. A file holds ``images_per_shard`` images of one split, the last file the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.config import from_dict, require, to_dict
from foundation.config_fields import added_later
from foundation.errors import ContractError, DataError, way_out

if TYPE_CHECKING:
    from foundation.codes.spec import CodeSpec
    from foundation.images.sources import ImageSource


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

    def __post_init__(self) -> None:
        sound = self.batch_size is None or self.batch_size > 0
        require(sound, "batch_size", self.batch_size, "a positive whole number, or null to measure")
        require(self.images_per_shard > 0, "images_per_shard", self.images_per_shard, "a positive whole number")
        require(not (self.flip and self.ten_crop), "ten_crop", self.ten_crop, "false beside flip: it has the flip")
        require(1 <= self.corner_scale <= 4, "corner_scale", self.corner_scale, "from 1 to 4")


REENCODE_FIX = "move the run's codes folder away to encode the present images"


@dataclass(frozen=True)
class PlannedSplit:
    """The images of one split.

    Attributes:
        image_ids: in the order of the source.
        labels: class numbers, or None.
        views: indices into ``foundation.images.views.VIEWS``.
        grids: index of each image's shape in ``Preprocess.all_shapes``; None where there is one.
    """

    image_ids: tuple[str, ...]
    labels: tuple[int, ...] | None
    views: tuple[int, ...]
    grids: tuple[int, ...] | None = None


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

    def path(self, folder: Path) -> Path:
        """Path in the dataset ``folder``."""
        from foundation.codes.shards import shard_path

        return shard_path(folder, self.split, self.index)


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
    """

    spec: CodeSpec
    splits: Mapping[str, PlannedSplit]
    images_per_shard: int
    corner_scale: float
    batch_size: int
    device: str

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
        """SHA-256 of images, views and specification, without batch size and device."""
        return _sha256(self._content())

    def _content(self) -> dict[str, Any]:
        splits = [
            {"name": name, "image_ids": each.image_ids, "labels": each.labels, "views": each.views}
            | ({} if each.grids is None else {"grids": each.grids})
            for name, each in self.splits.items()
        ]
        return {
            "contract": self.spec.contract,
            "spec": to_dict(self.spec),
            "images_per_shard": self.images_per_shard,
            "corner_scale": self.corner_scale,
            "splits": splits,
        }

    def to_json(self) -> bytes:
        """Content of ``plan.json``."""
        how = {"batch_size": self.batch_size, "device": self.device}
        plan = {"format": 1, "what": self._content(), "how": how}
        return json.dumps({**plan, "sha256": _sha256(plan)}, indent=None, sort_keys=True).encode()

    @classmethod
    def from_json(cls, path: Path) -> ExportPlan:
        """Read ``plan.json`` back.

        Raises:
            DataError: it is damaged.
        """
        from foundation.codes.spec import CodeSpec

        try:
            saved = json.loads(path.read_bytes())
            what, how = saved["what"], saved["how"]
            if _sha256({name: saved[name] for name in ("format", "what", "how")}) != saved["sha256"]:
                raise ValueError("it was changed after it was written")
            settings = {name: what[name] for name in ("images_per_shard", "corner_scale")}
            splits = {each["name"]: _saved_split(each) for each in what["splits"]}
            return cls(spec=from_dict(CodeSpec, what["spec"]), splits=splits, **settings, **how)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            fix = way_out(error, "move it away and run tessera encode again, which makes a new one")
            raise DataError(f"the plan is damaged: {error}", field=str(path), fix=fix) from error


def make_plan(
    spec: CodeSpec, sources: Mapping[str, ImageSource], config: EncodeConfig, *, batch_size: int, device: str
) -> ExportPlan:
    """Plan the export of the images of ``sources``.

    Raises:
        DataError: two images of one split share an id.
    """
    splits = {}
    for name, source in sources.items():
        twice = [image_id for image_id, count in Counter(source.ids).items() if count > 1]
        if twice:
            raise DataError("two images have one id", field=f"split {name}", found=twice[0])
        labels = None if source.labels is None else tuple(int(label) for label in source.labels)
        splits[name] = PlannedSplit(tuple(source.ids), labels, views_of(config, name), _grids_of(source, spec))
    return ExportPlan(
        spec=spec,
        splits=splits,
        images_per_shard=config.images_per_shard,
        corner_scale=config.corner_scale,
        batch_size=batch_size,
        device=device,
    )


def _grids_of(source: ImageSource, spec: CodeSpec) -> tuple[int, ...] | None:
    """The shape of each image: as the source has listed it, else by its header; None where there is one shape."""
    from foundation.images.buckets import buckets_of

    buckets = buckets_of(source, spec.preprocess.all_shapes)
    return None if buckets is None else tuple(buckets.tolist())


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
        for name in ("images_per_shard", "corner_scale", "batch_size", "device")
        if getattr(there, name) != getattr(wanted, name)
    ]
    for name in sorted({*there.splits, *wanted.splits}):
        rows += _differing(name, there.splits.get(name), wanted.splits.get(name))
    if rows:
        shown = "".join(f"\n    {name}: the plan has {one}, this run {other}" for name, one, other in rows)
        what = f"plans other images or labels, or other settings; differences:{shown}"
        raise ContractError(what, field=str(path), fix=f"restore the planned images and settings, or {REENCODE_FIX}")


def _differing(name: str, there: PlannedSplit | None, wanted: PlannedSplit | None) -> list[tuple[str, object, object]]:
    if there is None or wanted is None:
        return [(f"split {name}", there and "some", wanted and "some")]
    if there.views != wanted.views:
        return [(f"views of {name}", there.views, wanted.views)]
    if there.image_ids != wanted.image_ids:
        gone = sorted(set(there.image_ids) - set(wanted.image_ids))
        new = sorted(set(wanted.image_ids) - set(there.image_ids))
        return [(f"images of {name}", _some(there.image_ids, gone), _some(wanted.image_ids, new))]
    if there.labels != wanted.labels:
        first = 0
        if there.labels and wanted.labels:
            pairs = enumerate(zip(there.labels, wanted.labels, strict=True))
            first = next(i for i, (one, other) in pairs if one != other)
        one, other = (each and each[first] for each in (there.labels, wanted.labels))
        return [(f"label of {there.image_ids[first]} ({name})", one, other)]
    if there.grids != wanted.grids:
        pairs = enumerate(zip(there.grids or (), wanted.grids or (), strict=False))
        first = next((i for i, (one, other) in pairs if one != other), 0)
        one, other = (each and each[first] for each in (there.grids, wanted.grids))
        return [(f"shape of {there.image_ids[first]} ({name})", one, other)]
    return []


def _saved_split(saved: Mapping[str, Any]) -> PlannedSplit:
    labels = None if saved["labels"] is None else tuple(saved["labels"])
    grids = tuple(saved["grids"]) if "grids" in saved else None
    return PlannedSplit(tuple(saved["image_ids"]), labels, tuple(saved["views"]), grids)


def _some(image_ids: tuple[str, ...], only_here: list[str]) -> str:
    only = f", {len(only_here)} of them only in this plan, e.g. {', '.join(only_here[:3])}" if only_here else ""
    return f"{len(image_ids):,}{only}"


def _sha256(plan: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
