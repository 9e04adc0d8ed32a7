"""Images of a run: the listing that it began with, and the same images as they are now."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foundation.errors import CheckpointError, DataError, TesseraError
from foundation.images.config import Augment, DataConfig
from foundation.images.failures import Failure
from foundation.images.image_set import ImageSet, require_usable, scan_splits, split_sources
from foundation.images.inventory import PassedOver, inventory
from foundation.images.listing import Changes, ListedImages, ListedSource, Listing, changes
from foundation.images.sources import ImageSource, open_sources
from foundation.storage import durable
from pipeline.encoding.export import PLAN
from pipeline.encoding.plan import ExportPlan
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe

Split = Literal["validation", "train"]
_SAMPLE = 64


@dataclass(frozen=True)
class RunSources:
    """Where a run's images are now.

    Attributes:
        given: the sources of the recipe; ``validation`` is None where a share of ``train`` is held out.
        listing: of the run, None before it began.
        splits: ``train`` and ``validation`` of the listing, or of the recipe before there is one.
        changes: what differs from the listing.
    """

    given: Mapping[str, ImageSource | None]
    listing: Listing | None
    splits: dict[str, ImageSource]
    changes: Changes

    def to_encode(self) -> dict[str, ImageSource]:
        """The splits, without held-out copies of training images."""
        return {name: s.without_copies() if isinstance(s, ListedSource) else s for name, s in self.splits.items()}

    @property
    def known_failures(self) -> Mapping[str, Mapping[str, Failure]]:
        """Images of each split that were unusable when the run began, by id."""
        return {} if self.listing is None else {name: each.failures for name, each in self.listing.splits.items()}


def run_listing(folder: RunFolder) -> Listing | None:
    """The images that a run began with; None if no stage has used any.

    A run without the file, made by an earlier version or with a given tokenizer, has them in the plan of its codes.

    Raises:
        CheckpointError: a trained tokenizer without either.
        DataError: a damaged file.
    """
    if (folder.codes / PLAN).is_file() and not folder.listing.is_file():
        return listing_of_plan(ExportPlan.from_json(folder.codes / PLAN), {})
    if not _has_begun(folder):
        return None
    if folder.listing.is_file():
        return Listing.load(folder.listing)
    if folder.load_recipe().tokenizer.pretrained is not None:
        return None
    what = "the run does not know which images it was trained on"
    fix = "restore this file; a run of an earlier version can sample and edit, and its images need a new run"
    raise CheckpointError(what, field=str(folder.listing), fix=fix)


def _has_begun(folder: RunFolder) -> bool:
    """Whether some result depends on the listing."""
    checkpoints = folder.checkpoints("tokenizer")
    return (
        folder.tokenizer.exists()
        or (folder.codes / PLAN).exists()
        or (checkpoints.is_dir() and any(checkpoints.glob("step-*")))
    )


def listing_of_plan(plan: ExportPlan, found: Mapping[str, Any]) -> Listing:
    """The listing that a plan of an export amounts to; checksums are not known."""
    splits = {
        name: ListedImages(
            list(each.image_ids),
            None if each.labels is None else np.array(each.labels, np.int64),
            np.zeros(len(each.image_ids), np.uint64),
        )
        for name, each in plan.splits.items()
    }
    return Listing(splits, plan.spec.class_names, found)


def open_run_sources(folder: RunFolder, recipe: Recipe) -> RunSources:
    """Open the images of a run, or of its recipe before the run began.

    A tokenizer that another run trained brings that run's listing: an image that it was trained on is not held out.

    Raises:
        DataError: nothing to read.
        CheckpointError: see ``run_listing``.
    """
    listing = run_listing(folder)
    train, validation = open_sources(
        recipe.data.source, recipe.data.max_megapixels * 10**6, arrays=not recipe.data.preprocess.is_plain
    )
    given = {"train": train, "validation": validation}
    if listing is None:
        known = Listing.load(folder.tokenizer_listing).known() if folder.tokenizer_listing.is_file() else None
        return RunSources(given, None, split_sources(train, validation, recipe.data, known), Changes([], [], []))
    there = [each for each in (train, validation) if each is not None]
    now = {name for each in there for name in each.ids}
    if not any(name in now for each in listing.splits.values() for name in each.ids):
        what, fix = "holds none of the run's images", "correct the path, or use these images in a new run"
        found = f"{len(now):,} other images, e.g. {there[0].ids[0]}"
        raise DataError(what, field="data.source", found=found, expected=f"the images in {folder.listing}", fix=fix)
    splits: dict[str, ImageSource] = {
        name: ListedSource(each, listing.class_names, [given[name] or train]) for name, each in listing.splits.items()
    }
    since = changes(listing, given)
    before = listing.inventory.get("fingerprints")
    rewritten = before is not None and before != fingerprints(there)
    return RunSources(given, listing, splits, dataclasses.replace(since, rewritten=rewritten and not since))


def fingerprints(sources: Sequence[ImageSource]) -> list[str]:
    """Fingerprints of the files that hold the images, of sources that have some."""
    return [source.fingerprint for source in sources if hasattr(source, "fingerprint")]


def differences_since(folder: RunFolder, recipe: Recipe) -> str:
    """What differs between a run's images and those that are there now, as a sentence; "" if nothing does."""
    if recipe.codes is not None:
        return ""
    try:
        found = open_run_sources(folder, recipe).changes
    except TesseraError as error:
        return f"the run's images cannot be compared with what is there now: {' '.join(str(error).split())}"
    return found.sentence()


def open_training_images(folder: RunFolder, recipe: Recipe) -> tuple[dict[str, ImageSet], Listing, Changes]:
    """Training and validation images of stage 1, and their listing: the run's own, or that of a run that begins now.

    Raises:
        DataError: too many unusable images; or a run in progress of which an image is gone or changed.
    """
    opened = open_run_sources(folder, recipe)
    train, validation = scan_splits(
        opened.splits,
        recipe.data,
        augment=recipe.tokenizer.training.augment,
        seed=recipe.seed,
        known_failures=opened.known_failures,
    )
    images = {"train": train, "validation": validation}
    listing = opened.listing
    if listing is not None:
        _require_complete(images, listing)
    for each in images.values():
        require_usable(each, recipe.data.max_failed_share)
    if listing is None:
        found = found_in(opened.given, images, recipe.data)
        listing = Listing({name: _listed(each) for name, each in images.items()}, train.class_names, found)
    return images, listing, opened.changes


def _listed(images: ImageSet) -> ListedImages:
    failures = {each.image_id: each for each in images.failures}
    return ListedImages(list(images.planned_ids), images.planned_labels, images.checksums, failures)


def found_in(
    given: Mapping[str, ImageSource | None], images: Mapping[str, ImageSet] | None, data: DataConfig
) -> dict[str, Any]:
    """The inventory of a run's sources; without ``images``, nothing was decoded yet."""
    sources = [each for each in given.values() if each is not None]
    labels = [each.labels for each in sources if each.labels is not None]
    passed_over = [row for each in sources if hasattr(each, "passed_over") for row in each.passed_over.rows()]
    splits, shapes = {"planned": {"used": sum(len(each.ids) for each in sources), "failed": 0}}, None
    alike: dict[str, Any] = {}
    if images is not None:
        copies = {name: [each for each in s.failures if each.code == "duplicate"] for name, s in images.items()}
        splits = {
            name: {"used": len(each), "failed": len(each.failures) - len(copies[name])} for name, each in images.items()
        }
        if found := copies["validation"]:
            passed_over.append(
                PassedOver("copies", "held out, with a training image's pixels", len(found), found[0].image_id)
            )
        counted = images["train"].shapes + images["validation"].shapes
        shapes = counted.summary(data.preprocess.height, data.preprocess.width)
        alike = {"copies": images["train"].n_copies, "mean_psnr": mean_image_psnr(images["train"])}
    notes = list(dict.fromkeys(note for each in sources for note in getattr(each, "notes", ())))
    classes = sources[0].class_names
    all_labels = np.concatenate(labels) if labels else None
    held = inventory(splits, all_labels, classes, passed_over, notes, shapes)
    return {**held, **alike, "fingerprints": fingerprints(sources)}


def mean_image_psnr(images: ImageSet) -> float:
    """PSNR in dB of the mean of some images in place of each of them; at most 99."""
    chosen = np.unique(np.linspace(0, len(images) - 1, _SAMPLE).round().astype(int))
    pixels_BYXC = images.pixels(chosen).astype(np.float32)
    error = float(np.square(pixels_BYXC - pixels_BYXC.mean(0)).mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def _require_complete(images: Mapping[str, ImageSet], listing: Listing) -> None:
    """Refuse to continue a training of which an image is gone, changed or unreadable."""
    for split, each in images.items():
        before = listing.splits[split].failures
        lost = [failure for failure in each.failures if failure.image_id not in before]
        if lost:
            shown = "".join(f"\n    {failure.image_id}: {failure.reason}" for failure in lost[:10])
            raise DataError(
                "images of a training in progress are gone or changed",
                field="data.source",
                found=f"{len(lost):,} of the {split} images, the first:{shown}",
                fix="restore them, or start a new run with another --out",
            )


def open_run_split(folder: RunFolder, recipe: Recipe, split: Split) -> tuple[ImageSet, Changes]:
    """The usable images of one split of a run, for evaluation.

    A held-out image is left out if its pixels were trained on, or are others than when the run began.

    Returns:
        The images, and what differs from the listing.

    Raises:
        DataError: too many of them cannot be used.
        CheckpointError: see ``run_listing``.
    """
    opened = open_run_sources(folder, recipe)
    source = opened.splits[split]
    if isinstance(source, ListedSource):
        source = source.present()
    images = ImageSet(
        source,
        recipe.data.preprocess,
        cache_mib=recipe.data.cache_mib,
        augment=Augment(),
        seed=recipe.seed,
        name=f"{split} images",
        known_failures=opened.known_failures.get(split),
        apart_from=trained_on(folder, opened.listing) if split == "validation" else None,
    )
    require_usable(images, recipe.data.max_failed_share)
    return images, opened.changes


def trained_on(folder: RunFolder, listing: Listing | None) -> dict[int, str]:
    """Checksums of pixels that a run's tokenizer was trained on, each with an id."""
    listings = [] if listing is None else [listing]
    if folder.tokenizer_listing.is_file():
        listings.append(Listing.load(folder.tokenizer_listing))
    return {
        int(checksum): name
        for each in listings
        for name, checksum in zip(each.splits["train"].ids, each.splits["train"].checksums, strict=True)
        if checksum
    }


def adopt_listing(source: Path, folder: RunFolder) -> None:
    """Keep the listing of the run whose tokenizer is used, if ``source`` is a run folder that has one."""
    for name in (RunFolder(source).listing, RunFolder(source).tokenizer_listing):
        if name.is_file():
            durable.replace_file(folder.tokenizer_listing, name.read_bytes())
            return
